use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use proptest::prelude::*;

use super::*;

const SECRET: &[u8] = b"of this process";

/// A whole exchange with tokio-postgres's client; what came of it on our side, and on the client's.
fn exchange(
    verifier: &Verifier,
    password: &str,
    theirs: Option<&[u8]>,
    ours: Option<&[u8]>,
) -> (Result<(), ScramError>, bool) {
    let (mechanism, binding) = match theirs {
        Some(binding) => (PLUS, ChannelBinding::tls_server_end_point(binding.to_vec())),
        None => (PLAIN, ChannelBinding::unsupported()),
    };
    let mut client = ScramSha256::new(password.as_bytes(), binding);
    let challenge = match ClientFirst::read(mechanism, ours, client.message()) {
        Ok(first) => first.challenge(verifier.clone(), [7; 18]),
        Err(error) => return (Err(error), false),
    };
    client.update(challenge.message().as_bytes()).unwrap();
    match challenge.answer(client.message()) {
        Ok(last) => (Ok(()), client.finish(last.as_bytes()).is_ok()),
        Err(error) => (Err(error), false),
    }
}

#[test]
fn a_password_is_proved_in_both_directions() {
    let verifier = Verifier::of_password("hunter2", SECRET, "app");
    assert_eq!(exchange(&verifier, "hunter2", None, None), (Ok(()), true));
    assert_eq!(exchange(&verifier, "hunter3", None, None), (Err(ScramError::Wrong), false));
    assert_eq!(exchange(&Verifier::nobody(SECRET, "app"), "hunter2", None, None).0, Err(ScramError::Wrong));
}

#[test]
fn a_proof_is_bound_to_its_channel() {
    let verifier = Verifier::of_password("hunter2", SECRET, "app");
    let ours = Some(&b"our certificate"[..]);
    assert_eq!(exchange(&verifier, "hunter2", ours, ours), (Ok(()), true));
    assert_eq!(exchange(&verifier, "hunter2", Some(b"theirs"), ours).0, Err(ScramError::NotBound));
    assert!(matches!(exchange(&verifier, "hunter2", ours, None).0, Err(ScramError::Malformed(_))));
    // Who could bind and was told that we cannot: somebody has taken the offer away.
    let told = ClientFirst::read(PLAIN, ours, b"y,,n=,r=abc");
    assert_eq!(told.unwrap_err(), ScramError::NotBound);
    assert!(ClientFirst::read(PLAIN, None, b"y,,n=,r=abc").is_ok());
}

/// RFC 7677, section 3.
#[test]
fn the_exchange_of_the_rfc_is_understood() {
    let verifier = Verifier::parse(
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
         wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
    )
    .unwrap();
    let first = ClientFirst::read(PLAIN, None, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO").unwrap();
    let mut challenge = first.challenge(verifier, [0; 18]);
    let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    challenge.message = format!("r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
    challenge.nonce = nonce.into();
    let last = format!("c=biws,r={nonce},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
    assert_eq!(challenge.answer(last.as_bytes()).unwrap(), "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
}

#[test]
fn a_password_is_prepared_as_its_client_prepares_it() {
    // A non-ASCII space, a soft hyphen, a compatibility character: SASLprep maps each.
    for password in ["a\u{a0}b", "I\u{ad}X", "\u{2168}"] {
        let verifier = Verifier::of_password(password, SECRET, "app");
        assert_eq!(exchange(&verifier, password, None, None), (Ok(()), true), "{password:?}");
    }
    // Forbidden there: taken as it is, on both sides.
    let verifier = Verifier::of_password("bell\u{7}", SECRET, "app");
    assert_eq!(exchange(&verifier, "bell\u{7}", None, None), (Ok(()), true));
}

#[test]
fn who_is_not_there_looks_like_who_is() {
    let cost = |verifier: &Verifier| (verifier.iterations, verifier.salt.clone());
    let nobody = Verifier::nobody(SECRET, "app");
    assert_eq!(cost(&nobody), cost(&Verifier::of_password("hunter2", SECRET, "app")));
    assert_eq!(nobody, Verifier::nobody(SECRET, "app"), "the same at every attempt");
    assert_ne!(cost(&nobody), cost(&Verifier::nobody(SECRET, "other")));
    assert_ne!(cost(&nobody), cost(&Verifier::nobody(b"of another process", "app")));
    assert_eq!(format!("{nobody:?}"), "Verifier(..)");
}

#[test]
fn what_is_not_a_verifier_is_none() {
    for text in [
        "SCRAM-SHA-256$",
        "SCRAM-SHA-256$0:YQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
        "SCRAM-SHA-256$4096:$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
        "SCRAM-SHA-256$4096:YQ==$YQ==:YQ==",
        "md5aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "",
    ] {
        assert_eq!(Verifier::parse(text), None, "{text}");
    }
}

proptest! {
    /// Whatever a client sends: an error, never a panic, and never a way in.
    #[test]
    fn no_message_breaks_it_or_gets_in(first in message(), last in message(), plus: bool, bound: bool) {
        let binding = bound.then_some(&b"binding"[..]);
        let mechanism = if plus { PLUS } else { PLAIN };
        if let Ok(first) = ClientFirst::read(mechanism, binding, &first) {
            let challenge = first.challenge(Verifier::of_password_cheaply("hunter2"), [7; 18]);
            prop_assert!(challenge.answer(&last).is_err());
        }
    }

    /// A right exchange with one byte changed is not right any more, or says the same.
    #[test]
    fn one_changed_byte_is_noticed(at in 0_usize..200, by in 1_u8..=255) {
        let verifier = Verifier::of_password_cheaply("hunter2");
        let mut client = ScramSha256::new(b"hunter2", ChannelBinding::unsupported());
        let challenge = ClientFirst::read(PLAIN, None, client.message()).unwrap().challenge(verifier, [7; 18]);
        client.update(challenge.message().as_bytes()).unwrap();
        let mut last = client.message().to_vec();
        let at = at % last.len();
        last[at] ^= by;
        prop_assert!(challenge.answer(&last).is_err());
    }
}

/// Pieces of the grammar in any order, and noise.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"n,,n=,r=abc".to_vec()),
        Just(b"p=tls-server-end-point,,n=,r=abc".to_vec()),
        Just(b"n".to_vec()),
        Just(b"y".to_vec()),
        Just(b",".to_vec()),
        Just(b"=".to_vec()),
        Just(b"r=".to_vec()),
        Just(b"c=biws".to_vec()),
        Just(b",p=".to_vec()),
        Just(b"a=x".to_vec()),
        Just(b"m=x".to_vec()),
        Just(b"r=abcBwcHBwcHBwcHBwcHBwcHBwcH".to_vec()),
        Just(b"p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..8),
        Just(vec![b'x'; MAX_MESSAGE]),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

impl Verifier {
    /// With 4096 iterations as always, but once for all cases.
    fn of_password_cheaply(password: &str) -> Verifier {
        static MADE: std::sync::OnceLock<Verifier> = std::sync::OnceLock::new();
        MADE.get_or_init(|| Verifier::of_password(password, SECRET, "app")).clone()
    }
}
