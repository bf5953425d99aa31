//! The arguments of a program, from its command line and the environment.

use std::env;

use clap::{Arg, Command, Parser};

/// Those of this process; ends it with a sentence where they are wrong.
pub(crate) fn parse<T: Parser>() -> T {
    let matches = without_empty_variables(T::command()).get_matches();
    T::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Variables that are empty count as not set: containers are given `${VARIABLE:-}`.
fn without_empty_variables(command: Command) -> Command {
    let unless_empty = |argument: Arg| match argument.get_env() {
        Some(name) if env::var_os(name).is_some_and(|value| value.is_empty()) => argument.env(None::<&str>),
        _ => argument,
    };
    command.mut_args(unless_empty).mut_subcommands(without_empty_variables)
}
