//! Takes part in a run that a coordinator leads. See `worker --help`.

fn main() -> std::process::ExitCode {
    cli::worker::main()
}
