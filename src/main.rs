//! The `bsz` program: run the command line, set the exit code.

fn main() -> std::process::ExitCode {
    bszfs::cli::main()
}
