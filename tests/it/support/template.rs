//! A fresh data directory: `initdb` is run once per machine, and who needs one gets a copy. Where
//! PostgreSQL's programs are, and as whom they run.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Roles that every server has: `postgres` (superuser), `app` and `other` (trusted), and `locked`,
/// whose password is [`super::server::LOCKED_PASSWORD`].
const ROLES: &str = "CREATE ROLE app LOGIN;\nCREATE ROLE other LOGIN;\n\
                     SET password_encryption = 'scram-sha-256';\n\
                     CREATE ROLE locked LOGIN PASSWORD 'right-password';\n";

/// Who is let in: `pg_hba.conf`.
pub const HBA: &str = "local all all trust\n\
                       host all locked 127.0.0.1/32 scram-sha-256\n\
                       host all all 127.0.0.1/32 trust\n";

const SETTINGS: &str = "\nlisten_addresses = '127.0.0.1'\nfsync = off\nsynchronous_commit = off\n\
                        full_page_writes = off\nwal_level = minimal\nmax_wal_senders = 0\n\
                        max_connections = 200\nshared_buffers = 16MB\nautovacuum = off\n\
                        max_prepared_transactions = 4\nlogging_collector = off\n";

/// To be raised when what is in the template changes.
const TEMPLATE_REVISION: u32 = 1;

/// A directory with a copy of the template in `data`; the template is made first if this machine has none.
pub fn copy_of_template() -> PathBuf {
    copy_of(&template())
}

/// A directory with a copy of these data in `data`.
pub fn copy_of(data: &Path) -> PathBuf {
    let dir = tempfile::Builder::new().prefix("pgleash-test-pg-").tempdir().unwrap().keep();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    give_to_owner(&dir);
    run(Command::new("cp").arg("-a").arg(data).arg(dir.join("data")));
    dir
}

/// PostgreSQL's version, such as `15.14`.
pub fn version() -> String {
    let said = Command::new(binaries().join("postgres")).arg("--version").output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = said.split_whitespace().nth(2).unwrap_or_else(|| panic!("no version: {said}"));
    version.to_owned()
}

fn template() -> PathBuf {
    let version = version();
    let uid = fs::metadata("/proc/self").unwrap().uid();
    let home = std::env::temp_dir().join(format!("pgleash-test-template-{uid}"));
    let template = home.join(format!("{version}-{TEMPLATE_REVISION}"));
    fs::create_dir_all(&home).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).unwrap();
    give_to_owner(&home);
    let lock = fs::File::create(home.join("lock")).unwrap();
    lock.lock().unwrap();
    if !template.exists() {
        let unfinished = home.join("unfinished");
        let _ = fs::remove_dir_all(&unfinished);
        make_template(&unfinished);
        fs::rename(&unfinished, &template).unwrap();
    }
    template
}

fn make_template(dir: &Path) {
    let mut initdb = Command::new(binaries().join("initdb"));
    initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale"]);
    initdb.args(["--wal-segsize=1", "-D"]).arg(dir).current_dir("/");
    run_as_owner(&mut initdb);
    run(&mut initdb);
    configure(dir, SETTINGS);
    fs::write(dir.join("pg_hba.conf"), HBA).unwrap();
    let mut single = Command::new(binaries().join("postgres"));
    single.args(["--single", "-j", "-D"]).arg(dir).arg("postgres").current_dir("/");
    single.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    run_as_owner(&mut single);
    let mut child = single.spawn().unwrap();
    // With -j, a statement ends at an empty line.
    let roles = ROLES.replace(";\n", ";\n\n");
    child.stdin.take().unwrap().write_all(roles.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("ERROR"), "the roles were not made: {said}");
}

/// Where `initdb`, `postgres` and `psql` are: `PGLEASH_TEST_PG_BIN`, the newest Debian package, or `PATH`.
pub fn binaries() -> &'static Path {
    static BINARIES: OnceLock<PathBuf> = OnceLock::new();
    BINARIES.get_or_init(|| {
        if let Some(dir) = std::env::var_os("PGLEASH_TEST_PG_BIN") {
            return dir.into();
        }
        let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let newest = debian
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
            .filter(|(_, path)| path.join("bin/initdb").exists())
            .max();
        if let Some((_, path)) = newest {
            return path.join("bin");
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).find(|dir| dir.join("initdb").exists()).expect(
            "no initdb found: install PostgreSQL (Debian: apt-get install postgresql) or set PGLEASH_TEST_PG_BIN",
        )
    })
}

/// Makes a file or directory the property of who runs PostgreSQL.
pub fn give_to_owner(path: &Path) {
    if let Some((uid, gid)) = owner() {
        // It may have been removed meanwhile, which the caller sees.
        let _ = chown(path, Some(uid), Some(gid));
    }
}

/// Who runs PostgreSQL when we are root, which it refuses to run as: uid and gid.
fn owner() -> Option<(u32, u32)> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let find = |name: &str| {
        passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            (fields.first() == Some(&name)).then(|| (fields[2].parse().unwrap(), fields[3].parse().unwrap()))
        })
    };
    Some(find("postgres").or_else(|| find("nobody")).expect("a user postgres or nobody"))
}

/// Runs it as the user that PostgreSQL runs as.
pub fn run_as_owner(command: &mut Command) {
    if let Some((uid, gid)) = owner() {
        command.uid(uid).gid(gid);
    }
}

/// Runs it to its end, which must be a good one.
pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Appends to the configuration of a data directory.
pub fn configure(data: &Path, settings: &str) {
    let conf = data.join("postgresql.conf");
    fs::write(&conf, fs::read_to_string(&conf).unwrap() + settings).unwrap();
}
