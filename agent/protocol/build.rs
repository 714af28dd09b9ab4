//! Generates the ttrpc services of agent.proto.

fn main() {
    println!("cargo:rerun-if-changed=agent.proto");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["agent.proto"])
        .include(".")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize {
            async_all: true,
            ..Default::default()
        })
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default())
        .run()
        .expect("agent.proto is valid");
    // The generated files open with inner attributes, which `include!` can't take: declare them as modules.
    let modules = format!(
        "#[path = \"{out}/agent.rs\"]\npub mod agent;\n#[path = \"{out}/agent_ttrpc.rs\"]\npub mod agent_ttrpc;\n"
    );
    std::fs::write(format!("{out}/modules.rs"), modules).expect("OUT_DIR is writable");
}
