fn main() -> std::process::ExitCode {
    portcullis::spawner::main()
}
