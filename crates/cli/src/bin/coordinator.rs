//! Starts, checks and prepares runs. See `coordinator --help`.

fn main() -> std::process::ExitCode {
    cli::coordinator::main()
}
