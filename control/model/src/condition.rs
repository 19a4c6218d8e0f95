//! The little language of `accessLog.when`: `status >= 500 || duration > 1s`.
//!
//! ```text
//! or         = and { "||" and }
//! and        = not { "&&" not }
//! not        = "!" not | "(" or ")" | comparison
//! comparison = field operator literal
//! field      = status | duration | method | path | route | service | reason
//! operator   = == != < <= > >= (numbers and durations), == != =~ !~ (text)
//! literal    = 500 | 1s | "text"
//! ```

use std::time::Duration;

use regex::Regex;

use crate::{duration, suggest};

/// What a request is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Status code of the reply.
    pub status: u16,
    /// From the request's head to the end of the reply.
    pub duration: Duration,
    /// Upper case.
    pub method: &'a str,
    /// Without its query.
    pub path: &'a str,
    /// Name of the route, empty when none matched.
    pub route: &'a str,
    /// Name of the service, empty when none was chosen.
    pub service: &'a str,
    /// `x-weft-reason`, empty when the reply is not Weft's own.
    pub reason: &'a str,
}

/// A parsed condition.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition(Expr);

/// What is wrong with a condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConditionError {
    /// Bytes before the place of the problem.
    pub offset: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
enum Expr {
    Or(Vec<Expr>),
    And(Vec<Expr>),
    Not(Box<Expr>),
    Status(Order, u16),
    Duration(Order, Duration),
    Equals(Text, Box<str>),
    Matches(Text, Pattern),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Method,
    Path,
    Route,
    Service,
    Reason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

/// Equal when written the same.
#[derive(Debug, Clone)]
struct Pattern(Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Condition {
    /// Reads a condition.
    pub fn parse(text: &str) -> Result<Self, ConditionError> {
        let mut parser = Parser { text, offset: 0, depth: 0 };
        let expr = parser.or()?;
        match parser.peek() {
            None => Ok(Self(expr)),
            Some(_) => {
                parser.fail("the condition goes on where it should have ended", Some("join comparisons with && or ||"))
            }
        }
    }

    /// Whether it holds.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        self.0.matches(facts)
    }
}

impl Expr {
    fn matches(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Or(list) => list.iter().any(|expr| expr.matches(facts)),
            Self::And(list) => list.iter().all(|expr| expr.matches(facts)),
            Self::Not(expr) => !expr.matches(facts),
            Self::Status(order, status) => order.holds(&facts.status, status),
            Self::Duration(order, duration) => order.holds(&facts.duration, duration),
            Self::Equals(field, text) => *field.of(facts) == **text,
            Self::Matches(field, pattern) => pattern.0.is_match(field.of(facts)),
        }
    }
}

impl Text {
    fn of<'a>(self, facts: &Facts<'a>) -> &'a str {
        match self {
            Self::Method => facts.method,
            Self::Path => facts.path,
            Self::Route => facts.route,
            Self::Service => facts.service,
            Self::Reason => facts.reason,
        }
    }
}

impl Order {
    fn holds<T: PartialOrd>(self, a: &T, b: &T) -> bool {
        match self {
            Self::Equal => a == b,
            Self::NotEqual => a != b,
            Self::Less => a < b,
            Self::LessEqual => a <= b,
            Self::Greater => a > b,
            Self::GreaterEqual => a >= b,
        }
    }
}

const FIELDS: [&str; 7] = ["status", "duration", "method", "path", "route", "service", "reason"];
const OPERATORS: [&str; 8] = ["==", "!=", "=~", "!~", "<=", ">=", "<", ">"];
/// Parentheses and negations inside each other.
const DEEPEST: usize = 32;

struct Parser<'a> {
    text: &'a str,
    offset: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.offset..).unwrap_or_default()
    }

    fn peek(&mut self) -> Option<char> {
        self.offset += self.rest().len() - self.rest().trim_start().len();
        self.rest().chars().next()
    }

    fn eat(&mut self, token: &str) -> bool {
        self.peek();
        let found = self.rest().starts_with(token);
        if found {
            self.offset += token.len();
        }
        found
    }

    fn fail<T>(&self, message: impl Into<String>, hint: Option<&str>) -> Result<T, ConditionError> {
        Err(ConditionError { offset: self.offset, message: message.into(), hint: hint.map(str::to_owned) })
    }

    fn or(&mut self) -> Result<Expr, ConditionError> {
        let first = self.and()?;
        let mut list = vec![first];
        while self.eat("||") {
            list.push(self.and()?);
        }
        Ok(single(list, Expr::Or))
    }

    fn and(&mut self) -> Result<Expr, ConditionError> {
        let mut list = vec![self.not()?];
        while self.eat("&&") {
            list.push(self.not()?);
        }
        Ok(single(list, Expr::And))
    }

    fn not(&mut self) -> Result<Expr, ConditionError> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return self.fail(format!("nested deeper than {DEEPEST} levels"), None);
        }
        let expr = if self.eat("!") {
            Expr::Not(Box::new(self.not()?))
        } else if self.eat("(") {
            let expr = self.or()?;
            if !self.eat(")") {
                return self.fail("a closing parenthesis is missing", None);
            }
            expr
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn comparison(&mut self) -> Result<Expr, ConditionError> {
        self.peek();
        let start = self.offset;
        let name = self.take(|c| c.is_ascii_alphanumeric() || c == '_');
        if name.is_empty() {
            return self.fail("a comparison is missing", Some("for instance: status >= 500"));
        }
        let field = match name {
            "status" | "duration" => None,
            "method" => Some(Text::Method),
            "path" => Some(Text::Path),
            "route" => Some(Text::Route),
            "service" => Some(Text::Service),
            "reason" => Some(Text::Reason),
            _ => {
                let hint = suggest::hint(name, "there are", FIELDS);
                return Err(ConditionError { offset: start, message: format!("unknown field {name:?}"), hint });
            }
        };
        self.peek();
        let at = self.offset;
        let Some(operator) = OPERATORS.into_iter().find(|operator| self.eat(operator)) else {
            return self.fail(format!("a comparison is missing after {name}"), Some("one of == != < <= > >= =~ !~"));
        };
        let order = match operator {
            "==" => Order::Equal,
            "!=" => Order::NotEqual,
            "<" => Order::Less,
            "<=" => Order::LessEqual,
            ">" => Order::Greater,
            ">=" => Order::GreaterEqual,
            // A pattern: what is left of the order is whether it is negated.
            "=~" => Order::Equal,
            _ => Order::NotEqual,
        };
        let pattern = operator.ends_with('~');
        let refuse =
            |message: String, hint: &str| Err(ConditionError { offset: at, message, hint: Some(hint.to_owned()) });
        match field {
            None if pattern => refuse(format!("{name} cannot be compared with {operator}"), "use == != < <= > >="),
            None if name == "status" => Ok(Expr::Status(order, self.status()?)),
            None => Ok(Expr::Duration(order, self.duration()?)),
            Some(_) if !pattern && !matches!(order, Order::Equal | Order::NotEqual) => {
                refuse(format!("{name} cannot be compared with {operator}"), "use == != =~ !~")
            }
            Some(field) => {
                let expr = match pattern {
                    true => Expr::Matches(field, self.pattern()?),
                    false => Expr::Equals(field, self.string()?.into()),
                };
                Ok(if order == Order::NotEqual { Expr::Not(Box::new(expr)) } else { expr })
            }
        }
    }

    fn take(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.offset += end;
        rest.get(..end).unwrap_or_default()
    }

    fn status(&mut self) -> Result<u16, ConditionError> {
        self.peek();
        let at = self.offset;
        let word = self.take(|c| c.is_ascii_alphanumeric());
        match word.parse::<u16>() {
            Ok(status) if (100..=999).contains(&status) => Ok(status),
            _ => Err(ConditionError {
                offset: at,
                message: "status is compared with a status code".into(),
                hint: Some("for instance: status >= 500".into()),
            }),
        }
    }

    fn duration(&mut self) -> Result<Duration, ConditionError> {
        self.peek();
        let at = self.offset;
        let word = self.take(|c| c.is_ascii_alphanumeric() || c == '.');
        duration::parse(word).map_err(|error| ConditionError {
            offset: at,
            message: format!("duration is compared with a duration: {error}"),
            hint: Some("for instance: duration > 1s".into()),
        })
    }

    fn string(&mut self) -> Result<String, ConditionError> {
        self.peek();
        let start = self.offset;
        let Some(quote) = self.rest().chars().next().filter(|c| matches!(c, '"' | '\'')) else {
            return self.fail("text needs quotes", Some("for instance: method == \"GET\""));
        };
        let mut text = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.offset = start + at + 1;
                    return Ok(text);
                }
                // Only the quote and the backslash are escaped: patterns keep their other backslashes.
                '\\' => match chars.next() {
                    Some((_, next)) if next == quote || next == '\\' => text.push(next),
                    Some((_, next)) => text.extend(['\\', next]),
                    None => break,
                },
                c => text.push(c),
            }
        }
        self.fail("a closing quote is missing", None)
    }

    fn pattern(&mut self) -> Result<Pattern, ConditionError> {
        self.peek();
        let offset = self.offset;
        let text = self.string()?;
        Regex::new(&text).map(Pattern).map_err(|error| ConditionError {
            offset,
            message: "this is not a regular expression".into(),
            hint: Some(crate::validate::syntax::regex_reason(&error)),
        })
    }
}

fn single(mut list: Vec<Expr>, join: fn(Vec<Expr>) -> Expr) -> Expr {
    match list.len() {
        1 => list.remove(0),
        _ => join(list),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const FACTS: Facts<'static> = Facts {
        status: 503,
        duration: Duration::from_millis(1500),
        method: "GET",
        path: "/cart/7",
        route: "shop",
        service: "cart",
        reason: "circuit_open",
    };

    #[test]
    fn conditions_hold_or_not() {
        for (text, expected) in [
            ("status >= 500", true),
            ("status < 500", false),
            ("status == 503", true),
            ("status != 503", false),
            ("status > 503", false),
            ("status <= 503", true),
            ("duration > 1s", true),
            ("duration > 1s500ms", false),
            ("duration >= 1s500ms", true),
            ("method == \"GET\"", true),
            ("method != 'GET'", false),
            ("path =~ \"^/cart/\"", true),
            ("path !~ \"^/cart/\"", false),
            (r#"path =~ "^/cart/\d$""#, true),
            ("route == \"shop\"", true),
            ("service == \"files\"", false),
            ("reason != \"\"", true),
            ("!(reason == \"\")", true),
            ("status >= 500 || duration > 1h", true),
            ("status < 500 || duration > 1h", false),
            ("status < 500 && method == \"GET\" || route == \"shop\"", true),
            ("status < 500 && (method == \"GET\" || route == \"shop\")", false),
            ("!!status==503", true),
        ] {
            assert_eq!(Condition::parse(text).unwrap().matches(&FACTS), expected, "{text}");
        }
    }

    #[test]
    fn mistakes_have_a_place() {
        for (text, offset, message) in [
            ("", 0, "a comparison is missing"),
            ("status", 6, "a comparison is missing after status"),
            ("status >= ", 10, "status is compared with a status code"),
            ("status >= 5xx", 10, "status is compared with a status code"),
            ("stauts >= 500", 0, "unknown field \"stauts\""),
            ("status =~ 500", 7, "status cannot be compared with =~"),
            ("method > \"GET\"", 7, "method cannot be compared with >"),
            ("method == GET", 10, "text needs quotes"),
            ("method == \"GET", 10, "a closing quote is missing"),
            ("duration > 1", 11, "duration is compared with a duration: a duration needs a unit: h, m, s or ms"),
            ("path =~ \"(\"", 8, "this is not a regular expression"),
            ("(status > 1", 10, "status is compared with a status code"),
            ("(status > 100", 13, "a closing parenthesis is missing"),
            ("status > 100 status", 13, "the condition goes on where it should have ended"),
            ("status > 100 &&", 15, "a comparison is missing"),
        ] {
            let error = Condition::parse(text).unwrap_err();
            assert_eq!((error.offset, error.message.as_str()), (offset, message), "{text}");
        }
        let error = Condition::parse("stauts >= 500").unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("did you mean \"status\"?"));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let error = Condition::parse(&"(".repeat(100_000)).unwrap_err();
        assert_eq!(error.message, "nested deeper than 32 levels");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            let _ = Condition::parse(&text);
        }

        #[test]
        fn no_sequence_of_tokens_makes_it_panic(tokens in proptest::collection::vec(
            proptest::sample::select(vec![
                "status", "duration", "path", "==", "=~", "!", "(", ")", "&&", "||", "500", "1s", "\"é\"", "'", "\\", " ",
            ]), 0..20)) {
            if let Ok(condition) = Condition::parse(&tokens.concat()) {
                condition.matches(&FACTS);
            }
        }
    }
}
