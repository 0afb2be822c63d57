fn main() -> std::process::ExitCode {
    portcullis::mark!();
    portcullis::frontend::main()
}
