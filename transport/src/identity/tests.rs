//! Identities on disk and in memory.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn an_authority_and_its_identities_survive_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    ClusterCa::generate("emoji").unwrap().save(dir.path()).unwrap();
    let authority = ClusterCa::load(dir.path()).unwrap();
    assert_eq!(authority.cluster(), "emoji");
    let issued = authority.issue(Role::Node, "n1.rack-2").unwrap();
    issued.save(dir.path()).unwrap();
    let loaded = Identity::load(dir.path(), Role::Node, "n1.rack-2").unwrap();
    assert_eq!(loaded.subject(), issued.subject());
    assert_eq!(loaded.subject().cluster, "emoji");
    for key in ["ca.key.pem", "node-n1.rack-2.key.pem"] {
        let mode = std::fs::metadata(dir.path().join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    client_crypto(&loaded).unwrap();
    server_crypto(&loaded).unwrap();
}

#[test]
fn an_identity_survives_a_pipe_and_half_of_one_does_not() {
    let authority = ClusterCa::generate("emoji").unwrap();
    let issued = authority.issue(Role::Node, "n1").unwrap();
    let piped = Identity::from_pem(issued.to_pem()).unwrap();
    assert_eq!(piped.subject(), issued.subject());
    client_crypto(&piped).unwrap();
    let halves: [fn(&mut IdentityPem); 3] = [
        |pem| pem.certificate.truncate(40),
        |pem| pem.key.clear(),
        |pem| pem.authority = "nonsense".into(),
    ];
    for halve in halves {
        let mut pem = issued.to_pem();
        halve(&mut pem);
        assert!(matches!(Identity::from_pem(pem), Err(IdentityError::Unusable { .. })));
    }
    assert_eq!(format!("{:?}", issued.to_pem()), "IdentityPem");
}

#[test]
fn missing_and_broken_files_are_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Identity::load(dir.path(), Role::Client, "me").unwrap_err().to_string();
    assert!(missing.contains("client-me.pem") && missing.contains("ditmesh certs"), "{missing}");
    let authority = ClusterCa::generate("emoji").unwrap();
    authority.save(dir.path()).unwrap();
    authority.issue(Role::Client, "me").unwrap().save(dir.path()).unwrap();
    std::fs::write(dir.path().join("client-me.pem"), "nonsense").unwrap();
    let broken = Identity::load(dir.path(), Role::Client, "me").unwrap_err().to_string();
    assert!(broken.contains("client-me.pem") && broken.contains("certificate"), "{broken}");
    std::fs::write(dir.path().join("client-me.pem"), vec![b'x'; 100_000]).unwrap();
    let large = Identity::load(dir.path(), Role::Client, "me").unwrap_err();
    assert!(matches!(large, IdentityError::TooLarge { .. }));
}

#[test]
fn a_certificate_under_anothers_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let authority = ClusterCa::generate("emoji").unwrap();
    authority.issue(Role::Node, "n1").unwrap().save(dir.path()).unwrap();
    for ending in ["pem", "key.pem"] {
        let of = |name: &str| dir.path().join(format!("node-{name}.{ending}"));
        std::fs::copy(of("n1"), of("n2")).unwrap();
    }
    let error = Identity::load(dir.path(), Role::Node, "n2").unwrap_err().to_string();
    assert!(error.contains("node n1") && error.contains("node n2"), "{error}");
}

#[test]
fn names_that_cannot_stand_in_a_certificate_are_refused() {
    assert!(ClusterCa::generate("Two Words").is_err());
    assert!(ClusterCa::generate("a.b").is_err());
    let authority = ClusterCa::generate("emoji").unwrap();
    for name in ["", "UPPER", "under_score", "-x", "a..b", &"x".repeat(64)] {
        assert!(authority.issue(Role::Node, name).is_err(), "{name}");
    }
}

#[test]
fn a_certificate_is_good_until_its_last_day_and_not_before_its_first() {
    use std::time::{Duration, SystemTime};
    let identity = ClusterCa::generate("emoji").unwrap().issue(Role::Node, "n1").unwrap();
    let years = |years: u64| Duration::from_secs(years * 365 * 86_400);
    let now = SystemTime::now();
    identity.verify_at(now).unwrap();
    identity.verify_at(now + years(9)).unwrap();
    assert!(identity.verify_at(now + years(11)).is_err());
    assert!(identity.verify_at(now - years(1)).is_err());
}
