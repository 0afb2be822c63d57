fn main() -> std::process::ExitCode {
    portcullis::frontend::main()
}
