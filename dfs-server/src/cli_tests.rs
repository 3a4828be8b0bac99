//! What flags and files mean together.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn parse(args: &[&str]) -> Command {
    Cli::try_parse_from([&["dfs-server"], args].concat()).unwrap().command
}

struct Files(tempfile::TempDir);

impl Files {
    fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config"), config).unwrap();
        std::fs::write(dir.path().join("token"), "0123456789abcdef").unwrap();
        std::fs::set_permissions(dir.path().join("token"), std::fs::Permissions::from_mode(0o600)).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

#[test]
fn flags_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn flags_win_over_the_file() {
    let files = Files::new("port = 1\ncopies = 3\nblock_size = \"64K\"\npin = [\"/a=x,y\"]\nhost = \"::1\"\nlease_seconds = 5\n");
    let (config, token) = (files.path("config"), files.path("token"));
    let Command::Directory(args) = parse(&["directory", "--config", &config, "--port", "2", "--data", "/d", "--token-file", &token]) else {
        panic!()
    };
    let (place, directory) = args.with_file().unwrap().settings().unwrap();
    assert_eq!((place.port, directory.copies, directory.block_bits, directory.lease.as_secs()), (2, 3, 16, 5));
    assert_eq!((directory.lock_url.as_str(), directory.pins[0].servers.len()), ("http://[::1]:7401", 2));
}

#[test]
fn tokens_for_clients_have_options() {
    let files = Files::new("client_token = [\"/nowhere,ro\"]\n");
    std::fs::write(files.path("client"), "client-0123456789abcdef").unwrap();
    std::fs::set_permissions(files.path("client"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let (config, token, client) = (files.path("config"), files.path("token"), files.path("client"));
    let settings = |more: &[&str]| {
        let args = [&["lock", "--data", "/d", "--directory", "http://a:1", "--token-file", &token], more].concat();
        let Command::Lock(args) = parse(&args) else { panic!() };
        args.with_file().unwrap().settings().map(|_| ()).map_err(|e| e.to_string())
    };
    for fine in ["", ",ro", ",root_squash", ",root_squash,anonuid=7,anongid=8,ro"] {
        assert_eq!(settings(&["--client-token", &format!("{client}{fine}")]), Ok(()));
    }
    let nobody = parse_client_token(&format!("{client},root_squash,anongid=8,ro")).unwrap().limits;
    assert_eq!(nobody, Limits { read_only: true, squash: Some(Squash { uid: 65_534, gid: 8 }) });
    assert_eq!(parse_client_token(&client).unwrap().limits, Limits::default());
    for bad in [
        ",",
        ",rw",
        ",root_squash=1",
        ",root_squash,anonuid",
        ",root_squash,anonuid=0",
        ",root_squash,anonuid=-1",
        ",anonuid=5",
        ",ro=yes",
        ",root_squash,anongid=4294967295",
    ] {
        assert!(settings(&["--client-token", &format!("{client}{bad}")]).is_err(), "{bad}");
    }
    assert!(settings(&["--client-token", &format!("{client},root_sqash")]).unwrap_err().contains("did you mean 'root_squash'?"));
    assert!(settings(&["--client-token", &token]).unwrap_err().contains("the same token"));
    assert!(settings(&["--config", &config]).unwrap_err().contains("/nowhere"));
}

#[test]
fn history_has_defaults_and_can_be_set() {
    let files = Files::new("keep_removed = 0\nkeep_recovered = \"12h\"\nhistory_free = 3\n");
    let (config, token) = (files.path("config"), files.path("token"));
    let settings = |more: &[&str]| {
        let args = [&["directory", "--data", "/d", "--token-file", &token], more].concat();
        let Command::Directory(args) = parse(&args) else { panic!() };
        args.with_file().unwrap().settings().unwrap().1.keep
    };
    let hours = |count: u64| Duration::from_secs(count * 3600);
    let (days, removed) = (hours(30 * 24), hours(7 * 24));
    assert_eq!(settings(&[]), directory::Keep { versions: 100, versions_for: days, removed, recovered: days, free_percent: 10 });
    let set = directory::Keep { versions: 3, versions_for: hours(0), removed: hours(0), recovered: hours(12), free_percent: 3 };
    assert_eq!(settings(&["--config", &config, "--keep-versions-for", "0", "--keep-versions", "3"]), set);
}

#[test]
fn holders_are_told_unless_a_test_says_otherwise() {
    let files = Files::new("");
    let token = files.path("token");
    for (more, told) in [(&[][..], true), (&["--without-invalidation"], false)] {
        let args = [&["directory", "--data", "/d", "--token-file", &token], more].concat();
        let Command::Directory(args) = parse(&args) else { panic!() };
        assert_eq!(args.settings().unwrap().1.invalidate, told);
    }
    let help = Cli::command().find_subcommand_mut("all").unwrap().render_long_help().to_string();
    assert!(!help.contains("without-invalidation"));
}

#[test]
fn an_unknown_key_names_its_neighbour() {
    for (role, key, near) in [("directory", "prot", "port"), ("lock", "dta", "data"), ("file", "directori", "directory"), ("all", "copeis", "copies")]
    {
        let files = Files::new(&format!("{key} = 1\n"));
        let config = files.path("config");
        let result = match parse(&[role, "--config", &config]) {
            Command::Directory(args) => args.with_file().map(|_| ()),
            Command::Lock(args) => args.with_file().map(|_| ()),
            Command::File(args) => args.with_file().map(|_| ()),
            Command::All(args) => args.with_file().map(|_| ()),
            Command::Man { .. } => panic!("no role"),
        };
        let message = result.unwrap_err().to_string();
        assert!(message.contains(&format!("did you mean '{near}'")), "{message}");
    }
}

#[test]
fn what_is_missing_is_said() {
    let files = Files::new("");
    let token = files.path("token");
    let cases: [(&[&str], &str); 6] = [
        (&["file", "--data", "/d"], "umask 077"),
        (&["file", "--data", "/d", "--token-file", "/nowhere"], "/nowhere does not exist"),
        (&["file", "--token-file", &token], "--data"),
        (&["file", "--data", "/d", "--token-file", &token], "--directory"),
        (&["file", "--data", "/d", "--token-file", &token, "--host", "0.0.0.0", "--directory", "http://a:1"], "--advertise"),
        (&["file", "--data", "/d", "--token-file", &token, "--directory", "http://a:1", "--min-copies", "0"], "min-copies"),
    ];
    for (args, says) in cases {
        let Command::File(args) = parse(args) else { panic!() };
        let message = args.settings().unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn the_lock_service_wants_to_know_the_directory_service() {
    let files = Files::new("directory = \"http://a:7400\"\n");
    let (config, token) = (files.path("config"), files.path("token"));
    let Command::Lock(args) = parse(&["lock", "--data", "/d", "--token-file", &token]) else { panic!() };
    let message = args.settings().unwrap_err().to_string();
    assert!(message.contains("--directory"), "{message}");
    let Command::Lock(args) = parse(&["lock", "--config", &config, "--data", "/d", "--token-file", &token]) else { panic!() };
    assert_eq!(args.with_file().unwrap().settings().unwrap().2, "http://a:7400");
}

#[test]
fn pins() {
    assert_eq!(parse_pin("/a=b=x,y").unwrap().path, "/a=b");
    for bad in ["", "/a", "a=x", "/a=", "/a=x,"] {
        assert!(parse_pin(bad).is_err(), "{bad}");
    }
}
