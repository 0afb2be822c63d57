fn main() -> std::process::ExitCode {
    portcullis::mark!();
    portcullis::gateway::main()
}
