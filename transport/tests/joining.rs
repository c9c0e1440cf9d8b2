//! The door for machines without a certificate: when it is open, what it lets through, and what
//! not.

use std::time::Duration;

use ditmesh_transport::join::{JOIN_BYTES_MAX, JoinToken, Joining, ask};
use ditmesh_transport::{ClusterCa, ControlConfig, ControlEndpoint, Role, TransportError};

use crate::hostile::{SERVER_NAME, stranger_by};
use crate::support::{CLUSTER, block_on, identity, loopback, soon};

fn coordinator() -> ControlEndpoint {
    let mut config = ControlConfig::new(identity(Role::Node, "n1"), loopback());
    config.idle_timeout = Duration::from_secs(20);
    ControlEndpoint::bind(&config).unwrap()
}

fn token(coordinator: &str) -> JoinToken {
    let authority = identity(Role::Node, "n1").to_pem().authority;
    JoinToken::generate(&authority, coordinator).unwrap()
}

/// Answers the next question with itself, backwards.
async fn answer_one(endpoint: &ControlEndpoint) -> Vec<u8> {
    let Joining { question, answer, .. } = endpoint.next_joining().await.unwrap();
    answer.send(question.iter().rev().copied().collect()).unwrap();
    question
}

#[test]
fn a_question_is_answered_while_the_door_is_open_and_not_before_or_after() {
    block_on(async {
        let (coordinator, token) = (coordinator(), token("n1"));
        let address = coordinator.local_address();
        let shut = |error: TransportError| {
            let error = error.to_string();
            assert!(error.contains("no token is out"), "{error}");
        };
        shut(ask(address, &token, b"ab", soon()).await.unwrap_err());
        coordinator.open_door(true).unwrap();
        let asking = ask(address, &token, b"ab", soon());
        let (answer, question) = tokio::join!(asking, answer_one(&coordinator));
        assert_eq!((answer.unwrap(), question), (b"ba".to_vec(), b"ab".to_vec()));
        coordinator.open_door(false).unwrap();
        shut(ask(address, &token, b"ab", soon()).await.unwrap_err());
    });
}

#[test]
fn a_joiner_asks_nobody_but_the_coordinator_of_its_token() {
    block_on(async {
        let coordinator = coordinator();
        coordinator.open_door(true).unwrap();
        let address = coordinator.local_address();
        let other = ask(address, &token("n2"), b"ab", soon()).await.unwrap_err();
        assert!(matches!(other, TransportError::WrongIdentity { .. }), "{other}");
        let foreign = ClusterCa::generate(CLUSTER).unwrap();
        let foreign = JoinToken::generate(foreign.certificate_pem(), "n1").unwrap();
        let foreign = ask(address, &foreign, b"ab", soon()).await.unwrap_err();
        assert!(matches!(foreign, TransportError::Untrusted { .. }), "{foreign}");
    });
}

/// An open door is no way in: who shows no certificate gets no channel, whatever it says.
#[test]
fn a_stranger_that_speaks_as_a_member_stays_outside_an_open_door() {
    block_on(async {
        let coordinator = coordinator();
        coordinator.open_door(true).unwrap();
        let address = coordinator.local_address();
        let stranger = quinn::Endpoint::client(loopback()).unwrap();
        let calling = stranger.connect_with(stranger_by(b"ditmesh"), address, SERVER_NAME).unwrap();
        let connection = calling.await.unwrap();
        if let Ok((mut sending, _receiving)) = connection.open_bi().await {
            // It may have been turned away already.
            let _ = sending.write_all(&[0; 64]).await;
        }
        connection.closed().await;
        let member =
            ControlEndpoint::bind(&ControlConfig::new(identity(Role::Client, "me"), loopback()));
        let (member, expected) = (member.unwrap(), identity(Role::Node, "n1").subject().clone());
        let (there, first) =
            tokio::join!(member.connect(address, &expected, soon()), coordinator.accept());
        there.unwrap();
        assert_eq!(first.unwrap().peer().name, "me", "nobody came in before the member");
    });
}

#[test]
fn a_question_that_is_too_long_is_not_passed_on() {
    block_on(async {
        let (coordinator, token) = (coordinator(), token("n1"));
        coordinator.open_door(true).unwrap();
        let address = coordinator.local_address();
        let long = vec![0; JOIN_BYTES_MAX + 1];
        ask(address, &token, &long, soon()).await.unwrap_err();
        let (answer, question) =
            tokio::join!(ask(address, &token, b"ab", soon()), answer_one(&coordinator));
        assert_eq!((answer.unwrap(), question), (b"ba".to_vec(), b"ab".to_vec()));
    });
}
