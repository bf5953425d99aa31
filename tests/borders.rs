//! The borders between crates, and what their dependencies may be licensed under.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Which of our crates each of them may import: `ls crates` is the diagram.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("recipe", &[]),
    ("dataset", &["recipe"]),
    ("simsiam", &["recipe"]),
    ("collective", &[]),
    ("protocol", &[]),
    ("coordinator", &["recipe", "dataset", "protocol"]),
    ("dashboard", &["recipe", "protocol", "coordinator"]),
    ("worker", &["recipe", "dataset", "simsiam", "collective", "protocol"]),
    ("evaluation", &["recipe", "dataset", "simsiam", "protocol"]),
    (
        "cli",
        &[
            "recipe",
            "dataset",
            "simsiam",
            "collective",
            "protocol",
            "coordinator",
            "worker",
            "evaluation",
            "dashboard",
        ],
    ),
];

/// What must not be reachable from a crate, however indirectly.
const NEVER: &[(&str, &[&str])] = &[
    ("recipe", &["burn", "tokio", "tonic"]),
    ("dataset", &["burn", "tokio", "tonic"]),
    ("simsiam", &["tokio", "tonic"]),
    ("collective", &["burn", "tokio", "tonic"]),
    ("protocol", &["burn"]),
    ("coordinator", &["burn"]),
    ("dashboard", &["burn"]),
];

/// Licences that ask for no more than a notice, or for no more than changes to their own files (MPL).
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages that bring a file instead of a name, and what the file says.
const READ_BY_A_PERSON: &[(&str, &str)] = &[("cfg_block", "Apache-2.0")];

/// The workspace as cargo sees it.
struct Metadata(Value);

impl Metadata {
    fn read() -> Metadata {
        // Packages of other platforms have not been downloaded.
        let host = run("rustc", &["--print", "host-tuple"]);
        let platform = format!("--filter-platform={}", String::from_utf8(host).unwrap().trim());
        let arguments = ["metadata", "--format-version=1", "--locked", "--offline", &platform];
        Metadata(serde_json::from_slice(&run(env!("CARGO"), &arguments)).unwrap())
    }

    fn packages(&self) -> BTreeMap<&str, &Value> {
        let packages = self.0["packages"].as_array().unwrap();
        packages.iter().map(|package| (package["id"].as_str().unwrap(), package)).collect()
    }

    /// For each package the ones it needs to run, without those of its tests and of its build.
    fn needs(&self) -> BTreeMap<&str, Vec<&str>> {
        let nodes = self.0["resolve"]["nodes"].as_array().unwrap();
        let is_normal =
            |need: &&Value| need["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null());
        nodes
            .iter()
            .map(|node| {
                let needs = node["deps"].as_array().unwrap().iter().filter(is_normal);
                (node["id"].as_str().unwrap(), needs.map(|need| need["pkg"].as_str().unwrap()).collect())
            })
            .collect()
    }
}

fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Everything that `start` needs, directly or not.
fn reach<'a>(start: &'a str, needs: &BTreeMap<&'a str, Vec<&'a str>>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut waiting = vec![start];
    while let Some(package) = waiting.pop() {
        if reached.insert(package) {
            waiting.extend(&needs[package]);
        }
    }
    reached
}

#[test]
fn crates_import_what_the_diagram_says() {
    let metadata = Metadata::read();
    let (packages, needs) = (metadata.packages(), metadata.needs());
    let name = |id: &str| packages[id]["name"].as_str().unwrap();
    let ours: BTreeMap<&str, &str> = metadata.0["workspace_members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| (name(id.as_str().unwrap()), id.as_str().unwrap()))
        .filter(|(name, _)| *name != "end-to-end")
        .collect();
    let listed: BTreeSet<&str> = MAY_IMPORT.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        ours.keys().copied().collect::<BTreeSet<_>>(),
        listed,
        "every crate has its line in the diagram"
    );
    for (importer, allowed) in MAY_IMPORT {
        let imported = needs[ours[importer]].iter().map(|id| name(id)).filter(|name| ours.contains_key(name));
        for imported in imported {
            assert!(allowed.contains(&imported), "{importer} must not import {imported}");
        }
    }
    for (importer, forbidden) in NEVER {
        for id in reach(ours[importer], &needs) {
            assert!(!forbidden.contains(&name(id)), "{importer} must not reach {}", name(id));
        }
    }
}

#[test]
fn every_dependency_may_be_used_freely() {
    for package in Metadata::read().packages().into_values() {
        let (name, licence) = (package["name"].as_str().unwrap(), package["license"].as_str());
        let read_by_a_person = READ_BY_A_PERSON.iter().find(|(package, _)| *package == name);
        let licence = licence.or(read_by_a_person.map(|(_, licence)| *licence));
        let licence = licence.unwrap_or_else(|| panic!("{name} names no licence"));
        assert!(is_free(licence), "{name}: {licence}");
    }
}

/// Whether each part that is asked for ("AND") leaves a free choice ("OR"; old packages write "/"). An
/// expression in parentheses within a choice is taken apart too, which asks for more than it does.
fn is_free(licence: &str) -> bool {
    let licence = licence.replace('/', " OR ");
    let is_listed = |one: &str| LICENCES.contains(&one.trim_matches(['(', ')', ' ']));
    licence.split(" AND ").all(|part| part.split(" OR ").any(is_listed))
}

#[test]
fn licences_are_read_as_they_are_meant() {
    for (licence, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT/Apache-2.0", true),
        ("GPL-2.0 OR MIT", true),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("(MIT OR Apache-2.0) AND GPL-3.0", false),
        ("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", true),
    ] {
        assert_eq!(is_free(licence), expected, "{licence}");
    }
}
