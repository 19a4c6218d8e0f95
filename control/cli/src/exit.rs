//! How `weft` ends: exit codes that scripts can rely on, and the one line that says why.

use std::process::ExitCode;

/// Exit codes of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Something was checked and is not well, or could not be done.
    Failed = 1,
    /// What was asked for makes no sense.
    Usage = 2,
    /// Nobody answers.
    Unreachable = 3,
    /// The configuration is not valid.
    Invalid = 4,
    /// It took too long.
    TimedOut = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a verb failed.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    /// `None`: everything has been said already.
    message: Option<String>,
}

impl Failure {
    /// With a line for stderr.
    pub fn new(exit: Exit, message: impl std::fmt::Display) -> Self {
        Self { exit, message: Some(message.to_string()) }
    }

    /// After everything has been printed.
    pub const fn silent(exit: Exit) -> Self {
        Self { exit, message: None }
    }

    /// The code it ends with.
    pub const fn exit(&self) -> Exit {
        self.exit
    }

    /// The line for stderr; empty if everything has been said.
    pub fn message(&self) -> &str {
        self.message.as_deref().unwrap_or_default()
    }

    /// Prints the line and gives the code.
    pub fn report(self) -> ExitCode {
        if let Some(message) = self.message {
            eprint_line(&format!("weft: {message}"));
        }
        self.exit.into()
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Failed, format!("{error:#}"))
    }
}

/// Result of a verb.
pub type Done = Result<(), Failure>;

/// Data goes to stdout. A closed pipe (`weft … | head`) is not an error.
pub fn print_line(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// As [`print_line`], for what goes on until nobody listens any more.
///
/// # Errors
/// When stdout is closed.
pub fn try_print(text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Progress and errors go to stderr.
pub fn eprint_line(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
