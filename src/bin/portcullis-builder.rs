fn main() -> std::process::ExitCode {
    portcullis::mark!();
    portcullis::builder::main()
}
