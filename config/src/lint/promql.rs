//! The structure of a PromQL query, as far as the lint needs it.
//!
//! `promql-parser` reads the query and checks its types, as Prometheus does.

use promql_parser::label::{MatchOp, Matchers};
use promql_parser::parser::{self, LabelModifier, VectorMatchCardinality, value::ValueType};

/// Longest query, in bytes; queries that people write are a thousand times shorter.
const LONGEST: usize = 20_000;

/// Deepest nesting; queries that people write have a handful.
const DEEPEST: usize = 50;

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expr {
    Number(f64),
    Text,
    /// Series of a metric.
    Series {
        name: String,
        /// Labels that must have one value.
        pinned: Vec<String>,
    },
    /// `inner[5m]`, `inner[5m:1m]`.
    Range(Box<Expr>),
    Call {
        function: String,
        arguments: Vec<Expr>,
    },
    Aggregate {
        operator: String,
        /// The parameter, such as the count of `topk`.
        parameter: Option<f64>,
        /// The labels that are kept, or with `true` those that are dropped; `None` if all are
        /// dropped.
        labels: Option<(Vec<String>, bool)>,
        argument: Box<Expr>,
    },
    Binary {
        operator: String,
        /// Whether a comparison gives 0 or 1 instead of filtering.
        is_bool: bool,
        matching: Matching,
        left: Box<Expr>,
        right: Box<Expr>,
    },
}

/// How an operator matches the series of its two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Matching {
    /// One to one, by all labels.
    Whole,
    /// One to one, by some labels.
    Some,
    ManyLeft,
    ManyRight,
}

/// The type of a query's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResultKind {
    Vector,
    Scalar,
    Text,
    Range,
}

/// A query as far as it could be read.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Read {
    Query(Expr, ResultKind),
    /// Prometheus refuses it, for this reason.
    Refused(String),
    /// It is too long or too deep to be read.
    Unknown,
}

/// Reads `query`.
pub(super) fn read(query: &str) -> Read {
    if query.len() > LONGEST || nesting(query) > DEEPEST {
        return Read::Unknown;
    }
    match parser::parse(query) {
        Ok(expr) => {
            let kind = match expr.value_type() {
                ValueType::Vector => ResultKind::Vector,
                ValueType::Scalar => ResultKind::Scalar,
                ValueType::String => ResultKind::Text,
                ValueType::Matrix => ResultKind::Range,
            };
            convert(&expr, 0).map_or(Read::Unknown, |expr| Read::Query(expr, kind))
        }
        Err(why) => Read::Refused(why.lines().next().unwrap_or_default().to_owned()),
    }
}

/// Greatest depth of brackets and signs, and of operators in a row, which nest too.
fn nesting(query: &str) -> usize {
    let (mut depth, mut deepest, mut operators) = (0_usize, 0, 0);
    for byte in query.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'+' | b'-' | b'*' | b'/' | b'^' | b'%' => operators += 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest.max(operators / 4)
}

fn convert(expr: &parser::Expr, depth: usize) -> Option<Expr> {
    if depth > 4 * DEEPEST {
        return None;
    }
    let inner = |expr: &parser::Expr| convert(expr, depth + 1).map(Box::new);
    Some(match expr {
        parser::Expr::NumberLiteral(number) => Expr::Number(number.val),
        parser::Expr::StringLiteral(_) => Expr::Text,
        parser::Expr::VectorSelector(selector) => series(selector),
        parser::Expr::MatrixSelector(range) => Expr::Range(Box::new(series(&range.vs))),
        parser::Expr::Subquery(query) => Expr::Range(inner(&query.expr)?),
        parser::Expr::Paren(paren) => *inner(&paren.expr)?,
        parser::Expr::Unary(unary) => match *inner(&unary.expr)? {
            Expr::Number(number) => Expr::Number(-number),
            other => other,
        },
        parser::Expr::Call(call) => Expr::Call {
            function: call.func.name.to_owned(),
            arguments: call
                .args
                .args
                .iter()
                .map(|argument| convert(argument, depth + 1))
                .collect::<Option<_>>()?,
        },
        parser::Expr::Aggregate(aggregate) => Expr::Aggregate {
            operator: aggregate.op.to_string(),
            parameter: match aggregate.param.as_deref() {
                Some(parser::Expr::NumberLiteral(number)) => Some(number.val),
                _ => None,
            },
            labels: aggregate.modifier.as_ref().map(|modifier| {
                let exclude = matches!(modifier, LabelModifier::Exclude(_));
                (modifier.labels().labels.clone(), exclude)
            }),
            argument: inner(&aggregate.expr)?,
        },
        parser::Expr::Binary(binary) => Expr::Binary {
            operator: binary.op.to_string(),
            is_bool: binary.return_bool(),
            matching: binary.modifier.as_ref().map_or(Matching::Whole, |modifier| {
                match (&modifier.card, &modifier.matching) {
                    (VectorMatchCardinality::ManyToOne(_), _) => Matching::ManyLeft,
                    (VectorMatchCardinality::OneToMany(_), _) => Matching::ManyRight,
                    (_, Some(_)) => Matching::Some,
                    (_, None) => Matching::Whole,
                }
            }),
            left: inner(&binary.lhs)?,
            right: inner(&binary.rhs)?,
        },
        parser::Expr::Extension(_) => return None,
    })
}

fn series(selector: &parser::VectorSelector) -> Expr {
    let Matchers { matchers, or_matchers } = &selector.matchers;
    let equal = || {
        matchers.iter().filter(|matcher| matcher.op == MatchOp::Equal && !matcher.value.is_empty())
    };
    let named =
        equal().find(|matcher| matcher.name == "__name__").map(|matcher| matcher.value.clone());
    let pinned = match or_matchers[..] {
        [] => {
            equal().map(|matcher| matcher.name.clone()).filter(|name| name != "__name__").collect()
        }
        _ => Vec::new(),
    };
    Expr::Series { name: selector.name.clone().or(named).unwrap_or_default(), pinned }
}

impl Expr {
    /// Calls `visit` for this expression and all below, each with its ancestors, outermost first.
    pub(super) fn walk<'a>(&'a self, visit: &mut dyn FnMut(&'a Self, &[&'a Self])) {
        fn go<'a>(
            expr: &'a Expr,
            above: &mut Vec<&'a Expr>,
            visit: &mut dyn FnMut(&'a Expr, &[&'a Expr]),
        ) {
            visit(expr, above);
            above.push(expr);
            match expr {
                Expr::Range(inner) | Expr::Aggregate { argument: inner, .. } => {
                    go(inner, above, visit);
                }
                Expr::Call { arguments, .. } => {
                    arguments.iter().for_each(|argument| go(argument, above, visit));
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
            if let Self::Series { name, .. } = expr {
                metrics.push(name.as_str());
            }
        });
        metrics
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn deep_nesting_is_not_looked_at_and_harms_nothing() {
        for text in [
            "(".repeat(10_000),
            "-".repeat(10_000) + "1",
            "sum(".repeat(4_000),
            "1^".repeat(9_000) + "1",
            "1+".repeat(9_000) + "1",
            "1 or ".repeat(3_900) + "1",
            "1 == bool ".repeat(1_900) + "1",
        ] {
            assert!(!matches!(read(&text), Read::Query(..)), "{}…", &text[..20]);
        }
    }

    proptest! {
        #[test]
        fn no_query_is_too_strange(query in "(\\PC|[a-z(){}\\[\\],+*/<>=~\"'`#\n 0-9]){0,60}") {
            read(&query);
        }
    }
}
