fn main() -> std::process::ExitCode {
    portcullis::mark!();
    portcullis::cli::main()
}
