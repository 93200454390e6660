//! Where the RabbitMQ of the tests is: the machine's own, or one within a small system in a folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

/// The environment variable that names the folder of a small system whose RabbitMQ is taken in place of the
/// machine's own, as an absolute path. `scripts/install-rabbitmq4.sh` makes one.
pub const VARIABLE: &str = "WINDROW_TEST_RABBITMQ_ROOT";

const SERVER: &str = "usr/lib/rabbitmq/bin/rabbitmq-server";

/// Becomes a program of another root. The mounts end with the process, and nobody else sees them.
const ENTER: &str = r#"
    set -e
    root=$1 temporary=$2
    shift 2
    mount --rbind /proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mkdir -p "$root$temporary"
    mount --bind "$temporary" "$root$temporary"
    exec chroot "$root" "$@"
"#;

/// Programs of RabbitMQ and Erlang, wherever they are.
#[derive(Debug, Clone)]
pub(crate) struct Installation {
    root: Option<PathBuf>,
}

impl Installation {
    /// The one the environment names, or the machine's own. Fails when there is none.
    pub(crate) fn find() -> Result<Self> {
        let Some(root) = std::env::var_os(VARIABLE).map(PathBuf::from) else {
            let there = Path::new("/").join(SERVER).exists();
            ensure!(there, "rabbitmq-server is not installed: run scripts/install-test-tools.sh");
            return Ok(Self { root: None });
        };
        ensure!(
            root.is_absolute() && root.join(SERVER).exists(),
            "{VARIABLE}: there is no RabbitMQ in {}: run scripts/install-rabbitmq4.sh and give its folder as an \
             absolute path",
            root.display()
        );
        Ok(Self { root: Some(root) })
    }

    /// A command that becomes `program`, which is under the process id of what is started: to kill that one
    /// is to kill the program. Temporary files are at the same place for it as for us.
    pub(crate) fn command(&self, program: &str) -> Command {
        let Some(root) = &self.root else { return Command::new(program) };
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", ENTER, "sh"]);
        command.arg(root).arg(std::env::temp_dir()).arg(program);
        command
    }
}
