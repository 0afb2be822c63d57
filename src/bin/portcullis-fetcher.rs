fn main() -> std::process::ExitCode {
    portcullis::mark!();
    portcullis::fetcher::main()
}
