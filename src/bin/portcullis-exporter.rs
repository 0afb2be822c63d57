fn main() -> std::process::ExitCode {
    portcullis::mark!();
    portcullis::exporter::main()
}
