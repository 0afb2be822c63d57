fn main() -> std::process::ExitCode {
    portcullis::mark!();
    portcullis::registry::main()
}
