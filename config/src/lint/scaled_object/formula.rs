//! Judges a formula of `scalingModifiers` as KEDA does: by the rules of the compiler of `expr-lang`,
//! in which each trigger's name is a number.
//!
//! Covers arithmetic, comparisons, conditions and functions of numbers. A formula with other parts
//! of the language (closures, maps, operators on texts, statements) is not judged.

use std::collections::BTreeSet;

use tokens::{Token, tokens};

#[cfg(test)]
mod tests;
mod tokens;

/// The verdict on a formula.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// KEDA accepts it; it names these triggers.
    Taken(BTreeSet<String>),
    /// KEDA refuses it, for this reason.
    Refused(String),
    /// It has parts that are not covered here.
    Unknown,
}

/// Judges `formula`, which may use `names`.
pub(super) fn judge(formula: &str, names: &[&str]) -> Verdict {
    // KEDA wraps the formula in a cast to a number before it compiles it.
    let cast = if formula.contains("??") {
        format!("({formula})")
    } else if formula.starts_with("float(") {
        formula.to_owned()
    } else {
        format!("float({formula})")
    };
    let tokens = match tokens(&cast) {
        Ok(tokens) => tokens,
        Err(stop) => return stop.verdict(),
    };
    let mut parser = Parser { tokens: &tokens, at: 0, names, named: BTreeSet::new(), depth: 0 };
    match parser.whole() {
        Ok(()) => Verdict::Taken(parser.named),
        Err(stop) => stop.verdict(),
    }
}

/// The reason why reading ends.
enum Stop {
    Refused(String),
    Unknown,
}

impl Stop {
    fn verdict(self) -> Verdict {
        match self {
            Self::Refused(why) => Verdict::Refused(why),
            Self::Unknown => Verdict::Unknown,
        }
    }
}

fn refuse<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Refused(why.into()))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Type {
    Whole,
    Fraction,
    Flag,
    Nil,
    List,
    /// Known only at run time.
    Any,
}

impl Type {
    fn is_number(self) -> bool {
        matches!(self, Self::Whole | Self::Fraction | Self::Any)
    }

    fn is_flag(self) -> bool {
        matches!(self, Self::Flag | Self::Any)
    }
}

/// Functions of numbers: fewest and most arguments, whether a list may be one, and the type of the
/// result.
const FUNCTIONS: [(&str, usize, usize, bool, Type); 12] = [
    ("max", 1, usize::MAX, true, Type::Any),
    ("min", 1, usize::MAX, true, Type::Any),
    ("mean", 1, usize::MAX, true, Type::Fraction),
    ("median", 1, usize::MAX, true, Type::Fraction),
    ("abs", 1, 1, false, Type::Any),
    ("ceil", 1, 1, false, Type::Fraction),
    ("floor", 1, 1, false, Type::Fraction),
    ("round", 1, 1, false, Type::Fraction),
    ("int", 1, 1, false, Type::Whole),
    ("float", 1, 1, false, Type::Fraction),
    ("sum", 1, 2, true, Type::Any),
    ("len", 1, 1, true, Type::Whole),
];

/// Other functions and words of the language.
const WORDS: [&str; 70] = [
    "all",
    "none",
    "any",
    "one",
    "filter",
    "map",
    "find",
    "findIndex",
    "findLast",
    "findLastIndex",
    "count",
    "groupBy",
    "sortBy",
    "reduce",
    "type",
    "string",
    "trim",
    "trimPrefix",
    "trimSuffix",
    "upper",
    "lower",
    "split",
    "splitAfter",
    "replace",
    "repeat",
    "join",
    "indexOf",
    "lastIndexOf",
    "hasPrefix",
    "hasSuffix",
    "toJSON",
    "fromJSON",
    "toBase64",
    "fromBase64",
    "now",
    "duration",
    "date",
    "timezone",
    "first",
    "last",
    "get",
    "take",
    "keys",
    "values",
    "toPairs",
    "fromPairs",
    "reverse",
    "uniq",
    "concat",
    "flatten",
    "sort",
    "bitand",
    "bitor",
    "bitxor",
    "bitnand",
    "bitshl",
    "bitshr",
    "bitushr",
    "bitnot",
    "let",
    "if",
    "else",
    "in",
    "matches",
    "contains",
    "startsWith",
    "endsWith",
    "sum",
    "len",
    "env",
];

/// Deepest nesting.
const DEEPEST: usize = 50;

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    names: &'a [&'a str],
    named: BTreeSet<String>,
    depth: usize,
}

/// The precedence of an operator.
fn strength(token: &Token) -> Option<(&str, u8)> {
    let operator = match token {
        Token::Sign(sign) => *sign,
        Token::Name(name) => name.as_str(),
        Token::Number { .. } => return None,
    };
    let strength = match operator {
        "or" | "||" => 10,
        "and" | "&&" => 15,
        "==" | "!=" | "<" | ">" | ">=" | "<=" => 20,
        "+" | "-" => 30,
        "*" | "/" | "%" => 60,
        "**" | "^" => 100,
        // The highest precedence.
        "??" => 200,
        _ => return None,
    };
    Some((operator, strength))
}

impl Parser<'_> {
    fn whole(&mut self) -> Result<(), Stop> {
        let result = self.expression()?;
        if let Some(token) = self.tokens.get(self.at) {
            return match token {
                // A pipe, or an index.
                Token::Sign("|" | "[") => Err(Stop::Unknown),
                Token::Name(name) if WORDS.contains(&name.as_str()) => Err(Stop::Unknown),
                token => refuse(format!("{} is unexpected at its end", shown(token))),
            };
        }
        match result {
            Type::Flag | Type::List => refuse("it gives no number"),
            _ => Ok(()),
        }
    }

    fn sign(&mut self, sign: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Sign(next)) if *next == sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), Stop> {
        if self.sign(sign) {
            return Ok(());
        }
        match self.tokens.get(self.at) {
            None => refuse(format!("it ends without a `{sign}`")),
            Some(Token::Sign("|" | "[")) => Err(Stop::Unknown),
            Some(Token::Name(name)) if WORDS.contains(&name.as_str()) => Err(Stop::Unknown),
            Some(token) => refuse(format!("there is {} where `{sign}` should be", shown(token))),
        }
    }

    fn expression(&mut self) -> Result<Type, Stop> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(Stop::Unknown);
        }
        let mut result = self.binary(0)?;
        if self.sign("?:") {
            let other = self.expression()?;
            result = condition(result, result, other)?;
        } else if self.sign("?") {
            let yes = self.expression()?;
            self.expect(":")?;
            let no = self.expression()?;
            result = condition(result, yes, no)?;
        }
        self.depth -= 1;
        Ok(result)
    }

    fn binary(&mut self, least: u8) -> Result<Type, Stop> {
        let mut left = self.unary(least)?;
        while let Some((operator, strength)) = self.tokens.get(self.at).and_then(strength)
            && strength >= least
        {
            self.at += 1;
            // Powers associate to the right.
            let right =
                self.binary(if matches!(operator, "**" | "^") { strength } else { strength + 1 })?;
            left = combine(operator, left, right)?;
        }
        Ok(left)
    }

    fn unary(&mut self, least: u8) -> Result<Type, Stop> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(Stop::Unknown);
        }
        let not = matches!(self.tokens.get(self.at), Some(Token::Name(name)) if name == "not");
        let result = if not || self.sign("!") {
            self.at += usize::from(not);
            let inner = self.binary(least.max(50))?;
            if !inner.is_flag() {
                return refuse("`not` needs a condition");
            }
            Type::Flag
        } else if self.sign("-") || self.sign("+") {
            let inner = self.binary(least.max(90))?;
            if !inner.is_number() {
                return refuse("a sign needs a number");
            }
            inner
        } else {
            self.primary()?
        };
        self.depth -= 1;
        Ok(result)
    }

    fn primary(&mut self) -> Result<Type, Stop> {
        let Some(token) = self.tokens.get(self.at) else { return refuse("it ends too early") };
        self.at += 1;
        let result = match token {
            Token::Number { whole: true } => Type::Whole,
            Token::Number { whole: false } => Type::Fraction,
            Token::Sign("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                inner
            }
            Token::Sign("[") => {
                self.arguments("]")?;
                Type::List
            }
            Token::Sign(_) => {
                return refuse(format!("{} stands where a value should be", shown(token)));
            }
            Token::Name(name) if self.sign("(") => self.call(name)?,
            Token::Name(name) => self.name(name)?,
        };
        if self.sign("[") {
            return Err(Stop::Unknown);
        }
        Ok(result)
    }

    fn name(&mut self, name: &str) -> Result<Type, Stop> {
        match name {
            "true" | "false" => Ok(Type::Flag),
            "nil" => Ok(Type::Nil),
            _ if self.names.contains(&name) => {
                self.named.insert(name.to_owned());
                Ok(Type::Fraction)
            }
            "and" | "or" | "not" => refuse(format!("`{name}` stands where a value should be")),
            _ if WORDS.contains(&name) => Err(Stop::Unknown),
            _ => refuse(match self.names {
                [] => format!("it names `{name}`, and no trigger has a name"),
                names => format!(
                    "it names `{name}`, which is not a trigger's name; there are: {}",
                    names.join(", ")
                ),
            }),
        }
    }

    fn call(&mut self, name: &str) -> Result<Type, Stop> {
        let known = FUNCTIONS.iter().find(|(function, ..)| *function == name);
        let Some((_, least, most, list, result)) = known else {
            if WORDS.contains(&name) {
                return Err(Stop::Unknown);
            }
            return refuse(format!("there is no function `{name}`"));
        };
        let arguments = self.arguments(")")?;
        if arguments.len() < *least || arguments.len() > *most {
            return refuse(format!("{name}() does not take {} arguments", arguments.len()));
        }
        let only_lists = matches!(name, "sum" | "len");
        let fits = |argument: &Type| match argument {
            Type::Any => true,
            Type::List => *list,
            Type::Whole | Type::Fraction => !only_lists,
            Type::Flag | Type::Nil => false,
        };
        if name == "sum" && arguments.len() > 1 && arguments[0] == Type::List {
            return Err(Stop::Unknown);
        }
        if !arguments.iter().all(fits) {
            return refuse(format!("{name}() can't be applied to its arguments"));
        }
        Ok(*result)
    }

    fn arguments(&mut self, end: &str) -> Result<Vec<Type>, Stop> {
        let mut arguments = Vec::new();
        while !self.sign(end) {
            if !arguments.is_empty() {
                self.expect(",")?;
                // A comma at the end is allowed.
                if self.sign(end) {
                    break;
                }
            }
            arguments.push(self.expression()?);
        }
        Ok(arguments)
    }
}

fn shown(token: &Token) -> String {
    match token {
        Token::Number { .. } => "a number".to_owned(),
        Token::Name(name) => format!("`{name}`"),
        Token::Sign(sign) => format!("`{sign}`"),
    }
}

fn condition(condition: Type, yes: Type, no: Type) -> Result<Type, Stop> {
    if !condition.is_flag() {
        return refuse("what stands before `?` is not a condition");
    }
    Ok(if yes == no { yes } else { Type::Any })
}

fn combine(operator: &str, left: Type, right: Type) -> Result<Type, Stop> {
    let mismatch = || refuse(format!("`{operator}` can't be applied to its two sides"));
    let numbers = left.is_number() && right.is_number();
    match operator {
        "or" | "||" | "and" | "&&" if left.is_flag() && right.is_flag() => Ok(Type::Flag),
        "==" | "!=" => {
            let any = [left, right].iter().any(|side| matches!(side, Type::Any | Type::Nil));
            if any || numbers || left == right { Ok(Type::Flag) } else { mismatch() }
        }
        "<" | ">" | ">=" | "<=" if numbers => Ok(Type::Flag),
        // Of whole numbers alone.
        "%" if numbers && (left == Type::Fraction || right == Type::Fraction) => {
            refuse("`%` needs whole numbers; write int(…) around both sides")
        }
        "%" if numbers => Ok(Type::Whole),
        "/" | "**" | "^" if numbers => Ok(Type::Fraction),
        "+" | "-" | "*" if numbers => {
            let whole = left == Type::Whole && right == Type::Whole;
            Ok(if whole { Type::Whole } else { Type::Any })
        }
        "??" => Ok(Type::Any),
        _ => mismatch(),
    }
}
