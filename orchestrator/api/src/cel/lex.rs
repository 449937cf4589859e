//! Text to tokens.

use super::{parse::ParseError, value::Value};

/// A token.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// Text, bytes, or a number that needs no sign.
    Value(Value),
    /// A whole number before its sign is known.
    Magnitude(u64),
    Ident(String),
    /// A field's name in backticks.
    Quoted(String),
    Mark(&'static str),
    End,
}

impl Token {
    /// The token as messages show it.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Value(value) => format!("{value:?}"),
            Self::Magnitude(number) => number.to_string(),
            Self::Ident(name) => name.clone(),
            Self::Quoted(name) => format!("`{name}`"),
            Self::Mark(mark) => (*mark).to_owned(),
            Self::End => "<EOF>".to_owned(),
        }
    }
}

/// All marks, longer ones before those they begin with.
const MARKS: &[&str] = &[
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",",
    "(", ")", "[", "]", "{", "}",
];

pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn skip(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes);
    }

    fn skip_blanks(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.skip(rest.len().saturating_sub(trimmed.len()));
            if !trimmed.starts_with("//") {
                return;
            }
            self.skip(trimmed.find('\n').unwrap_or(trimmed.len()));
        }
    }

    /// The next token and where it begins.
    pub(super) fn next(&mut self) -> Result<(usize, Token), ParseError> {
        self.skip_blanks();
        let (at, rest) = (self.at, self.rest());
        let Some(first) = rest.chars().next() else { return Ok((at, Token::End)) };
        let digit = |letter: Option<char>| letter.is_some_and(|letter| letter.is_ascii_digit());
        if first.is_ascii_digit() || (first == '.' && digit(rest.chars().nth(1))) {
            return Ok((at, self.number()?));
        }
        if let Some(token) = self.text_token()? {
            return Ok((at, token));
        }
        if first == '`' {
            let inner = rest.get(1..).unwrap_or("");
            let Some(end) = inner.find('`') else { return Err(self.error("missing backtick")) };
            self.skip(end.saturating_add(2));
            return Ok((at, Token::Quoted(inner.get(..end).unwrap_or("").to_owned())));
        }
        if first == '_' || first.is_ascii_alphabetic() {
            let end = rest
                .find(|letter: char| letter != '_' && !letter.is_ascii_alphanumeric())
                .unwrap_or(rest.len());
            self.skip(end);
            return Ok((at, Token::Ident(rest.get(..end).unwrap_or("").to_owned())));
        }
        match MARKS.iter().find(|mark| rest.starts_with(**mark)) {
            Some(mark) => {
                self.skip(mark.len());
                Ok((at, Token::Mark(mark)))
            }
            None => Err(self.error(&format!("token recognition error at: '{first}'"))),
        }
    }

    fn error(&self, why: &str) -> ParseError {
        ParseError { at: self.at, why: why.to_owned() }
    }

    fn number(&mut self) -> Result<Token, ParseError> {
        let rest = self.rest();
        if let Some(hex) = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X")) {
            let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
            let number = u64::from_str_radix(hex.get(..end).unwrap_or(""), 16)
                .map_err(|_| self.error("invalid int literal"))?;
            self.skip(end.saturating_add(2));
            return Ok(self.whole(number));
        }
        let bytes = rest.as_bytes();
        let digits =
            |from: usize| bytes.iter().skip(from).take_while(|byte| byte.is_ascii_digit()).count();
        let mut end = digits(0);
        let mut float = false;
        if bytes.get(end) == Some(&b'.') && digits(end.saturating_add(1)) > 0 {
            float = true;
            end = end.saturating_add(1).saturating_add(digits(end.saturating_add(1)));
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let signed = matches!(bytes.get(end.saturating_add(1)), Some(b'+' | b'-'));
            let from = end.saturating_add(1).saturating_add(usize::from(signed));
            if digits(from) > 0 {
                float = true;
                end = from.saturating_add(digits(from));
            }
        }
        let text = rest.get(..end).unwrap_or("");
        if float {
            let number = text.parse().map_err(|_| self.error("invalid double literal"))?;
            self.skip(end);
            return Ok(Token::Value(Value::Double(number)));
        }
        let number = text.parse().map_err(|_| self.error("invalid int literal"))?;
        self.skip(end);
        Ok(self.whole(number))
    }

    fn whole(&mut self, number: u64) -> Token {
        if self.rest().starts_with(['u', 'U']) {
            self.skip(1);
            return Token::Value(Value::Uint(number));
        }
        Token::Magnitude(number)
    }

    /// A text or bytes literal, if one stands here.
    fn text_token(&mut self) -> Result<Option<Token>, ParseError> {
        let rest = self.rest();
        let prefix = rest.bytes().take_while(|byte| b"rRbB".contains(byte)).take(2).count();
        let marks = rest.get(..prefix).unwrap_or("").to_ascii_lowercase();
        let body = rest.get(prefix..).unwrap_or("");
        let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| body.starts_with(quote));
        let Some(quote) = quote else { return Ok(None) };
        if marks.matches('r').count() > 1 || marks.matches('b').count() > 1 {
            return Ok(None);
        }
        let (raw, bytes) = (marks.contains('r'), marks.contains('b'));
        self.skip(prefix.saturating_add(quote.len()));
        let mut out: Vec<u8> = Vec::new();
        loop {
            let rest = self.rest();
            if rest.starts_with(quote) {
                self.skip(quote.len());
                break;
            }
            let Some(letter) = rest.chars().next() else {
                return Err(self.error("missing closing quote"));
            };
            if letter == '\n' && quote.len() == 1 {
                return Err(self.error("missing closing quote"));
            }
            self.skip(letter.len_utf8());
            if letter == '\\' && !raw {
                self.escape(bytes, &mut out)?;
            } else {
                out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        if bytes {
            return Ok(Some(Token::Value(Value::Bytes(out.into()))));
        }
        let text = String::from_utf8(out).map_err(|_| self.error("invalid text literal"))?;
        Ok(Some(Token::Value(Value::from(text))))
    }

    fn escape(&mut self, bytes: bool, out: &mut Vec<u8>) -> Result<(), ParseError> {
        let rest = self.rest();
        let Some(letter) = rest.chars().next() else {
            return Err(self.error("missing closing quote"));
        };
        let plain = match letter {
            'a' => Some(7),
            'b' => Some(8),
            'f' => Some(12),
            'n' => Some(b'\n'),
            'r' => Some(b'\r'),
            't' => Some(b'\t'),
            'v' => Some(11),
            '\\' | '\'' | '"' | '`' | '?' => u8::try_from(letter).ok(),
            _ => None,
        };
        if let Some(byte) = plain {
            out.push(byte);
            self.skip(1);
            return Ok(());
        }
        let (skip, digits, radix): (usize, usize, u32) = match letter {
            'x' | 'X' => (1, 2, 16),
            'u' => (1, 4, 16),
            'U' => (1, 8, 16),
            '0'..='3' => (0, 3, 8),
            _ => return Err(self.error("invalid escape sequence")),
        };
        let number = rest
            .get(skip..skip.saturating_add(digits))
            .and_then(|text| u32::from_str_radix(text, radix).ok())
            .ok_or_else(|| self.error("invalid escape sequence"))?;
        self.skip(skip.saturating_add(digits));
        if bytes && digits <= 3 {
            out.push(u8::try_from(number).map_err(|_| self.error("invalid escape sequence"))?);
            return Ok(());
        }
        let letter = char::from_u32(number).ok_or_else(|| self.error("invalid escape sequence"))?;
        out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }
}
