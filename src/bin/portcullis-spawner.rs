fn main() -> std::process::ExitCode {
    portcullis::mark!();
    portcullis::spawner::main()
}
