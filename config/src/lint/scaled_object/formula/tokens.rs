//! A formula's tokens.

use super::{Stop, refuse};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Number { whole: bool },
    Name(String),
    Sign(&'static str),
}

const SIGNS: [&str; 27] = [
    "**", "==", "!=", "<=", ">=", "&&", "||", "??", "?:", "+", "-", "*", "/", "%", "^", "<", ">",
    "!", "?", ":", "(", ")", "[", "]", ",", "|", "=",
];

pub(super) fn tokens(text: &str) -> Result<Vec<Token>, Stop> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if first.is_whitespace() {
            rest = rest.trim_start();
        } else if let Some(behind) = rest.strip_prefix("//") {
            rest = behind.split_once('\n').map_or("", |(_, behind)| behind);
        } else if let Some(behind) = rest.strip_prefix("/*") {
            let Some((_, behind)) = behind.split_once("*/") else { return Err(Stop::Unknown) };
            rest = behind;
        } else if first.is_ascii_digit()
            || (first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit()))
        {
            let (whole, end) = number(rest)?;
            tokens.push(Token::Number { whole });
            rest = &rest[end..];
        } else if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let (name, behind) = rest.split_at(end.unwrap_or(rest.len()));
            tokens.push(Token::Name(name.to_owned()));
            rest = behind;
        } else if let Some(sign) = SIGNS.into_iter().find(|sign| rest.starts_with(sign)) {
            tokens.push(Token::Sign(sign));
            rest = &rest[sign.len()..];
        } else {
            return Err(Stop::Unknown);
        }
    }
    Ok(tokens)
}

/// Whether the number at the beginning is whole, and its length.
fn number(text: &str) -> Result<(bool, usize), Stop> {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '_');
    let mut end = end.unwrap_or(text.len());
    if text[..end].ends_with(['e', 'E']) && !text.starts_with("0x") {
        // A sign belongs to the exponent.
        let behind = text[end..].strip_prefix(['+', '-']).unwrap_or_default();
        let digits = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
        end += if digits > 0 { digits + 1 } else { 0 };
    }
    // A range, or a number in another base.
    if text[..end].contains("..")
        || text[..end].starts_with("0")
            && text[1..end].starts_with(|c: char| c.is_ascii_alphabetic())
    {
        return Err(Stop::Unknown);
    }
    let plain = text[..end].replace('_', "");
    match plain.parse::<f64>() {
        Ok(_) => Ok((plain.bytes().all(|byte| byte.is_ascii_digit()), end)),
        Err(_) => refuse(format!("`{}` is not a number", &text[..end])),
    }
}
