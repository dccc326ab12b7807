//! A light reading of PromQL: as much of its grammar as it takes to say what a query gives.
//!
//! It is no judge of a query: what it can't read it says nothing of.

/// Deepest nesting; queries that people write have a handful.
const DEEPEST: usize = 50;

/// Longest query, in tokens.
const LONGEST: usize = 2000;

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expr {
    Number(f64),
    Text,
    /// Series of a metric, by name where it is written before the braces.
    Series {
        name: String,
    },
    /// `inner[5m]`, `inner[5m:1m]`.
    Range(Box<Expr>),
    Call {
        function: String,
        arguments: Vec<Expr>,
    },
    Aggregate {
        operator: String,
        /// The labels that are kept, or with `true` those that are not; `None` where all are dropped.
        labels: Option<(Vec<String>, bool)>,
        arguments: Vec<Expr>,
    },
    Binary {
        operator: String,
        left: Box<Expr>,
        right: Box<Expr>,
    },
}

const AGGREGATIONS: [&str; 13] = [
    "sum",
    "avg",
    "min",
    "max",
    "count",
    "stddev",
    "stdvar",
    "group",
    "topk",
    "bottomk",
    "quantile",
    "count_values",
    "limitk",
];

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Number(f64),
    Text,
    /// What is between `[` and `]`.
    Range,
    /// What is between `{` and `}`, with the name where it is a matcher.
    Matchers(Option<String>),
    Sign(&'static str),
}

/// Reads `query`; `None` where it is not understood.
pub(super) fn parse(query: &str) -> Option<Expr> {
    let tokens = tokens(query).filter(|tokens| tokens.len() <= LONGEST)?;
    let mut parser = Parser { tokens: &tokens, at: 0 };
    let expr = parser.binary(0, 0)?;
    (parser.at == tokens.len()).then_some(expr)
}

impl Expr {
    /// Calls `visit` for this and all below, each with what it is in, outermost first.
    pub(super) fn walk<'a>(&'a self, visit: &mut dyn FnMut(&'a Self, &[&'a Self])) {
        fn go<'a>(
            expr: &'a Expr,
            above: &mut Vec<&'a Expr>,
            visit: &mut dyn FnMut(&'a Expr, &[&'a Expr]),
        ) {
            visit(expr, above);
            above.push(expr);
            match expr {
                Expr::Range(inner) => go(inner, above, visit),
                Expr::Call { arguments, .. } | Expr::Aggregate { arguments, .. } => {
                    arguments.iter().for_each(|it| go(it, above, visit));
                }
                Expr::Binary { left, right, .. } => {
                    go(left, above, visit);
                    go(right, above, visit);
                }
                Expr::Number(_) | Expr::Text | Expr::Series { .. } => {}
            }
            above.pop();
        }
        go(self, &mut Vec::new(), visit);
    }

    /// The metrics that it reads, in order.
    pub(super) fn metrics(&self) -> Vec<&str> {
        let mut metrics = Vec::new();
        self.walk(&mut |expr, _| {
            if let Self::Series { name } = expr {
                metrics.push(name.as_str());
            }
        });
        metrics
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
}

/// How strongly an operator binds.
fn strength(operator: &str) -> Option<u8> {
    Some(match operator {
        "or" => 1,
        "and" | "unless" => 2,
        "==" | "!=" | "<" | "<=" | ">" | ">=" => 3,
        "+" | "-" => 4,
        "*" | "/" | "%" | "atan2" => 5,
        "^" => 6,
        _ => return None,
    })
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn sign(&mut self, sign: &str) -> Option<()> {
        let found = matches!(self.peek(), Some(Token::Sign(it)) if *it == sign);
        found.then(|| self.at += 1)
    }

    fn word(&mut self, words: &[&str]) -> Option<String> {
        let Some(Token::Name(name)) = self.peek() else { return None };
        let name = name.to_ascii_lowercase();
        words.contains(&name.as_str()).then(|| {
            self.at += 1;
            name
        })
    }

    fn binary(&mut self, least: u8, depth: usize) -> Option<Expr> {
        if depth > DEEPEST {
            return None;
        }
        let mut left = self.unary(depth + 1)?;
        loop {
            let operator = match self.peek() {
                Some(Token::Sign(sign)) => (*sign).to_owned(),
                Some(Token::Name(name)) => name.to_ascii_lowercase(),
                _ => break,
            };
            let Some(strength) = strength(&operator).filter(|it| *it > least) else { break };
            self.at += 1;
            self.word(&["bool"]);
            if self.word(&["on", "ignoring"]).is_some() {
                self.labels()?;
                if self.word(&["group_left", "group_right"]).is_some()
                    && matches!(self.peek(), Some(Token::Sign("(")))
                {
                    self.labels()?;
                }
            }
            let right = self.binary(strength, depth + 1)?;
            left = Expr::Binary { operator, left: Box::new(left), right: Box::new(right) };
        }
        Some(left)
    }

    fn unary(&mut self, depth: usize) -> Option<Expr> {
        if depth > DEEPEST {
            return None;
        }
        if self.sign("-").is_some() || self.sign("+").is_some() {
            return self.unary(depth + 1);
        }
        let mut expr = self.primary(depth)?;
        loop {
            if self.peek() == Some(&Token::Range) {
                self.at += 1;
                expr = Expr::Range(Box::new(expr));
            } else if self.word(&["offset"]).is_some() {
                self.sign("-");
                // A number with its units is two tokens.
                while matches!(self.peek(), Some(Token::Number(_))) {
                    self.at += 1;
                }
                self.duration_unit();
            } else if self.sign("@").is_some() {
                match self.peek()? {
                    Token::Number(_) => self.at += 1,
                    _ => drop(self.primary(depth)?),
                }
            } else {
                return Some(expr);
            }
        }
    }

    fn duration_unit(&mut self) {
        if let Some(Token::Name(name)) = self.peek()
            && strength(name).is_none()
        {
            self.at += 1;
        }
    }

    fn primary(&mut self, depth: usize) -> Option<Expr> {
        let token = self.peek()?.clone();
        self.at += 1;
        match token {
            Token::Number(number) => Some(Expr::Number(number)),
            Token::Text => Some(Expr::Text),
            Token::Matchers(name) => Some(Expr::Series { name: name.unwrap_or_default() }),
            Token::Sign("(") => {
                let inner = self.binary(0, depth + 1)?;
                self.sign(")")?;
                Some(inner)
            }
            Token::Name(name) => self.named(name, depth),
            Token::Sign(_) | Token::Range => None,
        }
    }

    fn named(&mut self, name: String, depth: usize) -> Option<Expr> {
        let lower = name.to_ascii_lowercase();
        if AGGREGATIONS.contains(&lower.as_str())
            && matches!(self.peek(), Some(Token::Sign("(") | Token::Name(_)))
        {
            let mut labels = self.grouping()?;
            let arguments = self.arguments(depth)?;
            if labels.is_none() {
                labels = self.grouping()?;
            }
            return Some(Expr::Aggregate { operator: lower, labels, arguments });
        }
        if matches!(self.peek(), Some(Token::Sign("("))) {
            let arguments = self.arguments(depth)?;
            return Some(Expr::Call { function: lower, arguments });
        }
        if let Some(Token::Matchers(_)) = self.peek() {
            self.at += 1;
        }
        match lower.as_str() {
            "inf" => Some(Expr::Number(f64::INFINITY)),
            "nan" => Some(Expr::Number(f64::NAN)),
            _ => Some(Expr::Series { name }),
        }
    }

    #[allow(clippy::option_option)] // Not understood, or nothing there, or labels.
    fn grouping(&mut self) -> Option<Option<(Vec<String>, bool)>> {
        let Some(word) = self.word(&["by", "without"]) else { return Some(None) };
        Some(Some((self.labels()?, word == "without")))
    }

    fn labels(&mut self) -> Option<Vec<String>> {
        self.sign("(")?;
        let mut labels = Vec::new();
        while self.sign(")").is_none() {
            let Token::Name(name) = self.peek()?.clone() else { return None };
            self.at += 1;
            labels.push(name);
            self.sign(",");
        }
        Some(labels)
    }

    fn arguments(&mut self, depth: usize) -> Option<Vec<Expr>> {
        self.sign("(")?;
        let mut arguments = Vec::new();
        while self.sign(")").is_none() {
            arguments.push(self.binary(0, depth + 1)?);
            self.sign(",");
        }
        Some(arguments)
    }
}

const SIGNS: [&str; 18] = [
    "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "^", "(", ")", ",", "@", "=~", "!~",
];

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if first.is_whitespace() {
            rest = rest.trim_start();
        } else if first == '#' {
            rest = rest.split_once('\n').map_or("", |(_, behind)| behind);
        } else if "\"'`".contains(first) {
            rest = &rest[quoted(rest)?..];
            tokens.push(Token::Text);
        } else if first == '[' {
            rest = &rest[rest.find(']')? + 1..];
            tokens.push(Token::Range);
        } else if first == '{' {
            let end = braces(rest)?;
            tokens.push(Token::Matchers(named_within(&rest[1..end])));
            rest = &rest[end + 1..];
        } else if first.is_ascii_digit() || first == '.' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.');
            let (number, behind) = rest.split_at(end.unwrap_or(rest.len()));
            // A duration where a number is wanted, as in `offset 5m`, is one too.
            tokens.push(Token::Number(number.parse().unwrap_or(f64::NAN)));
            rest = behind;
        } else if first.is_ascii_alphabetic() || first == '_' || first == ':' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
            let (name, behind) = rest.split_at(end.unwrap_or(rest.len()));
            tokens.push(Token::Name(name.to_owned()));
            rest = behind;
        } else {
            let sign = SIGNS.into_iter().find(|sign| rest.starts_with(sign))?;
            tokens.push(Token::Sign(sign));
            rest = &rest[sign.len()..];
        }
    }
    Some(tokens)
}

/// Where the text that begins `rest` ends, its quotes included.
fn quoted(rest: &str) -> Option<usize> {
    let quote = rest.as_bytes().first()?;
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        if byte == *quote && !escaped {
            return Some(at + 1);
        }
        escaped = byte == b'\\' && !escaped && *quote != b'`';
    }
    None
}

/// Where the `}` is that closes the `{` at the beginning.
fn braces(rest: &str) -> Option<usize> {
    let mut at = 1;
    loop {
        match *rest.as_bytes().get(at)? {
            b'}' => return Some(at),
            b'"' | b'\'' | b'`' => at += quoted(&rest[at..])?,
            _ => at += 1,
        }
    }
}

/// The metric that `{__name__="…"}` names.
fn named_within(matchers: &str) -> Option<String> {
    let behind = matchers.split_once("__name__")?.1.trim_start().strip_prefix('=')?.trim_start();
    behind.strip_prefix(['"', '\''])?.split(['"', '\'']).next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape(query: &str) -> String {
        fn show(expr: &Expr) -> String {
            let all = |them: &[Expr]| them.iter().map(show).collect::<Vec<_>>().join(" ");
            match expr {
                Expr::Number(number) => number.to_string(),
                Expr::Text => "text".into(),
                Expr::Series { name } => name.clone(),
                Expr::Range(inner) => format!("[{}]", show(inner)),
                Expr::Call { function, arguments } => format!("({function} {})", all(arguments)),
                Expr::Aggregate { operator, labels, arguments } => {
                    let labels = labels.as_ref().map_or(String::new(), |(labels, without)| {
                        format!(" {}{}", if *without { "-" } else { "" }, labels.join(","))
                    });
                    format!("({operator}{labels}: {})", all(arguments))
                }
                Expr::Binary { operator, left, right } => {
                    format!("({} {operator} {})", show(left), show(right))
                }
            }
        }
        parse(query).map_or_else(|| "?".into(), |expr| show(&expr))
    }

    #[test]
    fn queries_are_read_as_prometheus_reads_them() {
        for (query, want) in [
            ("up", "up"),
            ("sum(vllm:num_requests_waiting)", "(sum: vllm:num_requests_waiting)"),
            ("sum by (le, pod) (rate(a_bucket{x=\"}\"}[5m]))", "(sum le,pod: (rate [a_bucket]))"),
            ("sum(rate(a[5m])) without (pod)", "(sum -pod: (rate [a]))"),
            ("1 + 2 * 3", "(1 + (2 * 3))"),
            ("1 - 2 - 3", "((1 - 2) - 3)"),
            ("a / on(pod) group_left(x) b", "(a / b)"),
            ("sum(a) / count(b{c=~'d.*'})", "((sum: a) / (count: b))"),
            (
                "histogram_quantile(0.95, sum by (le) (rate(a_bucket[5m])))",
                "(histogram_quantile 0.95 (sum le: (rate [a_bucket])))",
            ),
            ("max_over_time(sum(a)[5m:30s])", "(max_over_time [(sum: a)])"),
            ("a offset 5m > bool 3 or vector(0)", "((a > 3) or (vector 0))"),
            ("sum(a) # the sum\n/ 2", "((sum: a) / 2)"),
            ("{__name__=\"a:b\",c=\"d\"}", "a:b"),
            ("-sum(a)", "(sum: a)"),
            ("topk(3, a)", "(topk: 3 a)"),
            ("1e3 * a", "(1000 * a)"),
            // A metric may be called like an aggregation.
            ("sum", "sum"),
            ("sum(a", "?"),
            ("sum)a(", "?"),
            ("a b", "?"),
            ("", "?"),
        ] {
            assert_eq!(shape(query), want, "{query}");
        }
    }

    #[test]
    fn deep_nesting_is_not_understood_and_harms_nobody() {
        for text in [
            "(".repeat(100_000),
            "-".repeat(100_000),
            "sum(".repeat(100_000),
            "1^".repeat(100_000),
            "1+".repeat(100_000) + "1",
        ] {
            assert_eq!(parse(&text), None);
        }
    }

    proptest! {
        #[test]
        fn no_query_is_too_strange(query in "(\\PC|[a-z(){}\\[\\],+*/<>=~\"'`#\n 0-9]){0,60}") {
            parse(&query);
        }
    }
}
