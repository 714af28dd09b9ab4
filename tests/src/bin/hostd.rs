//! PID 1 and daemon of the virtual KVM host.

fn main() -> anyhow::Result<()> {
    vmbox_tests::hostd::main()
}
