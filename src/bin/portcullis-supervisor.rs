fn main() -> std::process::ExitCode {
    portcullis::mark!();
    portcullis::supervisor::main()
}
