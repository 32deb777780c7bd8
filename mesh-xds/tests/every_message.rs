//! Protobuf-JSON both ways for every message there is: random ones, and one for each field alone.
//!
//! A message that goes through JSON, JSON text or YAML comes back as it was, also inside an `Any` inside an `Any`.

#[path = "support/random_message.rs"]
mod random_message;

use mesh_xds::Any;
use mesh_xds::json::{Redaction, any_to_value, from_json, from_value, from_yaml};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage as _};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use random_message::Generator;

/// Random messages of each type; the seed is the number of the case.
const CASES: u64 = 24;

fn messages() -> Vec<MessageDescriptor> {
    let bytes = include_bytes!("../src/pb/descriptors.binpb");
    let pool = DescriptorPool::decode(bytes.as_slice()).expect("the committed descriptors are sound");
    pool.all_messages().filter(|message| !message.is_map_entry()).collect()
}

fn pack(message: &DynamicMessage) -> Any {
    let type_url = format!("type.googleapis.com/{}", message.descriptor().full_name());
    Any { type_url, value: message.encode_to_vec() }
}

fn unpack(descriptor: &MessageDescriptor, any: &Any) -> DynamicMessage {
    DynamicMessage::decode(descriptor.clone(), any.value.as_slice()).expect("it is of this type")
}

/// Through JSON and back; YAML is slow, so not every case takes that way too.
fn check(message: &DynamicMessage, yaml: bool, case: &str) {
    let descriptor = message.descriptor();
    let any = pack(message);
    // As it arrives: a field that was set to its default is not there.
    let message = &unpack(&descriptor, &any);
    let json = any_to_value(&any, Redaction::Off);
    let text = json.to_string();
    let mut ways = vec![("value", from_value::<Any>(&json)), ("text", from_json::<Any>(&text))];
    if yaml {
        ways.push(("yaml", from_yaml::<Any>(&text)));
    }
    for (way, read) in ways {
        let read = read.unwrap_or_else(|e| panic!("{case}, {way}: {e}\n{text}"));
        assert_eq!(read.type_url, any.type_url);
        let back = unpack(&descriptor, &read);
        let same = random_message::settled(&back) == random_message::settled(message);
        assert!(same, "{case}, {way}\n{text}\n{}", any_to_value(&read, Redaction::Off));
        // Once more: what we read ourselves is in the one order that versions are computed from.
        assert_eq!(
            from_value::<Any>(&any_to_value(&read, Redaction::Off)).as_ref(),
            Ok(&read),
            "{case}, {way}"
        );
    }
    let redacted = any_to_value(&any, Redaction::On).to_string();
    assert_eq!(
        random_message::has_secrets(message),
        redacted != text,
        "{case}: secrets, and nothing else, are hidden"
    );
}

#[test]
fn random_messages_survive() {
    let (mut cases, mut bytes) = (0, 0);
    for descriptor in messages() {
        for seed in 0..CASES {
            let mut generator = Generator::new(StdRng::seed_from_u64(seed), &descriptor);
            let message = generator.message(&descriptor);
            check(&message, seed < 2, &format!("{}, seed {seed}", descriptor.full_name()));
            cases += 1;
            bytes += message.encoded_len();
        }
    }
    println!("{cases} random messages of {} types, {bytes} bytes", messages().len());
}

#[test]
fn every_field_alone_survives() {
    let mut fields = 0;
    for descriptor in messages() {
        for field in descriptor.fields() {
            let mut generator = Generator::new(StdRng::seed_from_u64(7), &descriptor);
            let Some(message) = generator.only(&descriptor, &field) else { continue };
            check(&message, true, field.full_name());
            fields += 1;
        }
    }
    assert!(fields > 3_000, "{fields} fields");
    println!("{fields} fields, one at a time");
}
