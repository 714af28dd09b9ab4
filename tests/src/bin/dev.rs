//! `cargo dev`: the developer tool.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use vmbox_tests::arch::Arch;
use vmbox_tests::host::{self, Flavour, Host, Model};
use vmbox_tests::product::{self, Profile};
use vmbox_tests::streams::Streams;
use vmbox_tests::suite::{self, Tier};
use vmbox_tests::workspace::Workspace;
use vmbox_tests::{debian, demo, test_host};

/// Build vmbox, run it, and test it. Each verb installs what it lacks.
#[derive(Parser)]
#[command(name = "cargo dev")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a Debian container in a microVM and let it say where it is.
    Demo {
        /// Of what; this machine's if not given.
        #[arg(long, value_enum, default_value_t = Arch::native())]
        arch: Arch,
    },
    /// Run the unit tests, and the system tests on a KVM that runs guests.
    Test {
        /// For what; several, separated by commas, are built and run side by side.
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Arch::native()])]
        arch: Vec<Arch>,
        /// Which tests.
        #[arg(long, value_enum, default_value = "all")]
        tier: Tier,
        /// Names, or the test runner's own options after `--`.
        filter: Vec<String>,
    },
    /// Build the product into .build/product, or .build/product-ARCH for another architecture than this machine's.
    Build {
        /// Of what; this machine's if not given.
        #[arg(long, value_enum, default_value_t = Arch::native())]
        arch: Arch,
        /// Without optimisation, with assertions.
        #[arg(long)]
        debug: bool,
    },
    /// Build the guest kernel and print where it is.
    Kernel {
        /// Of what; this machine's if not given.
        #[arg(long, value_enum, default_value_t = Arch::native())]
        arch: Arch,
    },
    /// Make the virtual host's root and the containers' image, and print where they are.
    Image {
        /// Of what; this machine's if not given.
        #[arg(long, value_enum, default_value_t = Arch::native())]
        arch: Arch,
    },
    /// Run a command in the virtual KVM host; `up` keeps one running, `down` ends it.
    Host {
        /// Of what; this machine's if not given.
        #[arg(long, value_enum, default_value_t = Arch::native())]
        arch: Arch,
        /// One CPU that counts instructions: figures repeat exactly.
        #[arg(long)]
        icount: bool,
        /// Nanoseconds an instruction takes, as a power of two; only with --icount.
        #[arg(long, default_value_t = 0, requires = "icount")]
        shift: u8,
        /// `up`, `down`, or a command, after `--` if it begins with a dash.
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
    /// Measure, side by side with others, in the counting virtual host.
    Bench {
        /// Of what; this machine's if not given.
        #[arg(long, value_enum, default_value_t = Arch::native())]
        arch: Arch,
        /// Which figures: sizes, boot, start, engines, memory; all if none is named.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// `host up OPTIONS` as `host OPTIONS up`: what follows a command is the command's, but these two have nothing of their own.
fn options_first(mut words: Vec<String>) -> Vec<String> {
    let is_host = words.get(1).is_some_and(|word| word == "host");
    let is_verb = words
        .get(2)
        .is_some_and(|word| ["up", "down"].contains(&word.as_str()));
    if is_host && is_verb {
        words[2..].rotate_left(1);
    }
    words
}

fn main() -> ExitCode {
    match perform(Arguments::parse_from(options_first(std::env::args().collect())).verb) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(255)),
        Err(error) => {
            eprintln!("dev: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(verb: Verb) -> Result<i32> {
    let workspace = Workspace::find()?;
    match verb {
        Verb::Demo { arch } => return demo::run(&workspace, arch),
        Verb::Test { arch, tier, filter } => {
            return suite::run_tests(&workspace, &arch, tier, &filter);
        }
        Verb::Build { arch, debug } => {
            let profile = if debug {
                Profile::Debug
            } else {
                Profile::Release
            };
            println!("{}", product::build(&workspace, arch, profile)?.display());
        }
        Verb::Kernel { arch } => println!("{}", product::kernel(&workspace, arch)?.display()),
        Verb::Image { arch } => {
            println!("{}", debian::host_image(&workspace, arch)?.dir.display());
            println!("{}", debian::container_images(&workspace, arch)?.display());
        }
        Verb::Host {
            arch,
            icount,
            shift,
            command,
        } => {
            let flavour = if icount {
                Flavour::Counting { shift }
            } else {
                Flavour::Fast
            };
            let model = Model {
                arch,
                flavour,
                ordinal: 0,
            };
            return match command.as_slice() {
                [verb] if verb == "up" => Host::up(&workspace, model, true).map(|_| 0),
                [verb] if verb == "down" => host::down(&workspace, model).map(|()| 0),
                _ => {
                    let host = Host::up(&workspace, model, false)?;
                    host.run(&command, &[], &mut Streams::connected())
                }
            };
        }
        Verb::Bench { arch, arguments } => return bench(&workspace, arch, &arguments),
    }
    Ok(0)
}

/// The benchmarks are a program that runs inside the host.
fn bench(workspace: &Workspace, arch: Arch, arguments: &[String]) -> Result<i32> {
    let images = debian::container_images(workspace, arch)?;
    product::build(workspace, arch, Profile::Release)?;
    let program =
        product::binaries(workspace, arch, &["vmbox-benches"], "release")?.join("vmbox-benches");
    let model = Model {
        arch,
        flavour: Flavour::Counting { shift: 0 },
        ordinal: 0,
    };
    let host = test_host::emulated(workspace, model)?;
    let mut argv = vec![program.display().to_string()];
    argv.extend_from_slice(arguments);
    let environment = [
        ("VMBOX_TEST_PRODUCT", host.product().display().to_string()),
        ("VMBOX_TEST_IMAGES", images.display().to_string()),
        // Of the counting host's time, of which a boot takes a third of a second and a minute takes hours.
        ("VMBOX_BENCH_PATIENCE_S", "3".to_owned()),
    ];
    host.run(&argv, &environment, &mut Streams::shown())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn host(words: &str) -> Option<(Arch, Vec<String>)> {
        let words = format!("dev host {words}");
        let words = words.split(' ').map(str::to_owned).collect();
        match Arguments::try_parse_from(options_first(words)).ok()?.verb {
            Verb::Host { arch, command, .. } => Some((arch, command)),
            _ => None,
        }
    }

    #[test]
    fn options_stand_on_either_side_of_the_hosts_verb() {
        let wanted = Some((Arch::Aarch64, vec!["up".to_owned()]));
        assert_eq!(host("up --arch aarch64"), wanted);
        assert_eq!(host("--arch aarch64 up"), wanted);
    }

    #[test]
    fn a_command_has_its_options_with_or_without_dashes_before_it() {
        for words in ["ls --arch", "-- ls --arch"] {
            assert_eq!(host(words).unwrap().1, ["ls", "--arch"]);
        }
        assert_eq!(host("--icount"), None);
    }
}
