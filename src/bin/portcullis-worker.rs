fn main() -> std::process::ExitCode {
    portcullis::mark!();
    portcullis::worker::main()
}
