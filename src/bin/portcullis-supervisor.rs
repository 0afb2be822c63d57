fn main() -> std::process::ExitCode {
    portcullis::supervisor::main()
}
