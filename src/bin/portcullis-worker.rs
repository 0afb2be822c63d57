fn main() -> std::process::ExitCode {
    portcullis::worker::main()
}
