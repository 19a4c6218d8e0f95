//! `weft validate`: check files without running.

use std::path::PathBuf;

use clap::ValueEnum;
use weft_model::{Checked, Config, Diagnostic, Options, Problems, load_paths};

use crate::exit::{Done, Exit, Failure, eprint_line, print_line};

/// Arguments of `weft validate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files, or directories of *.yaml, *.yml and *.json.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// How mistakes are printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// How mistakes are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// With the lines they are in.
    Table,
    /// For tools.
    Json,
}

/// Checks; exit code 4 when anything is wrong.
pub fn run(args: &Args) -> Done {
    let checked = load_paths(&args.paths, Options::default());
    if args.output == Output::Json {
        return json(&checked);
    }
    match checked {
        Ok(checked) => {
            warn(&checked.warnings);
            print_line(&summary(&checked.config, &checked.warnings));
            Ok(())
        }
        Err(problems) => Err(invalid(&problems)),
    }
}

/// Prints every mistake.
pub fn invalid(problems: &Problems) -> Failure {
    eprint_line(&format!("{:?}", problems.report()));
    let count = problems.len();
    eprint_line(&format!("weft: the configuration is not valid: {count} mistake{}", if count == 1 { "" } else { "s" }));
    Failure::silent(Exit::Invalid)
}

/// Says which fields have no effect.
pub fn warn(warnings: &[Diagnostic]) {
    for warning in warnings {
        eprint_line(&format!("warning: {warning}"));
    }
}

fn json(checked: &Result<Checked, Problems>) -> Done {
    let (errors, warnings): (Vec<&Diagnostic>, Vec<&Diagnostic>) = match checked {
        Ok(checked) => (Vec::new(), checked.warnings.iter().collect()),
        Err(problems) => (problems.iter().collect(), Vec::new()),
    };
    print_line(&serde_json::json!({"valid": checked.is_ok(), "errors": errors, "warnings": warnings}).to_string());
    if checked.is_ok() { Ok(()) } else { Err(Failure::silent(Exit::Invalid)) }
}

/// `valid: 1 gateway, 3 routes, 5 services (6 endpoints)`
pub fn summary(config: &Config, warnings: &[Diagnostic]) -> String {
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let endpoints = config.services.iter().map(|service| service.endpoints.len()).sum();
    format!(
        "valid: {}, {}, {} ({}), {}",
        count(config.gateways.len(), "gateway"),
        count(config.http_routes.len() + config.tcp_routes.len(), "route"),
        count(config.services.len(), "service"),
        count(endpoints, "endpoint"),
        count(warnings.len(), "warning"),
    )
}
