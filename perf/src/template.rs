//! A message that is encoded once; for each request only keys and values are patched in.

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 16;
/// Bytes of a value.
pub(crate) const VALUE_BYTES: usize = 128;

/// The key of `number`: it sorts by number.
pub(crate) fn key(number: u64) -> [u8; KEY_BYTES] {
    let mut key = *b"benchkey\0\0\0\0\0\0\0\0";
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

/// The stand-in for the key of the command at `position`, which nothing else in a message looks like.
pub(crate) fn key_place(position: usize) -> [u8; KEY_BYTES] {
    let mut place = [0xee; KEY_BYTES];
    place[8..].copy_from_slice(&(position as u64).to_be_bytes());
    place
}

/// The stand-in for a value.
pub(crate) const VALUE_PLACE: [u8; VALUE_BYTES] = [0xdd; VALUE_BYTES];

/// An encoded message with its places for keys and values.
#[derive(Clone)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    keys: Vec<usize>,
    values: Vec<usize>,
}

impl Template {
    /// Finds the places of `commands` keys, and of values if there are any, in an encoded message.
    ///
    /// # Panics
    /// If a key's place is missing: the message was not made with [`key_place`].
    pub(crate) fn new(bytes: Vec<u8>, commands: usize) -> Template {
        let find = |from: usize, what: &[u8]| {
            let mut windows = bytes[from..].windows(what.len());
            windows.position(|window| window == what).map(|at| from + at)
        };
        let keys: Vec<_> =
            (0..commands).map(|position| find(0, &key_place(position)).expect("the key of each command")).collect();
        let values = keys.iter().filter_map(|from| find(*from, &VALUE_PLACE));
        let values = values.collect();
        Template { bytes, keys, values }
    }

    /// The message as it is now.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Patches the command at `position`; the value only if the message has one.
    pub(crate) fn patch(&mut self, position: usize, number: u64, value: &[u8; VALUE_BYTES]) {
        let at = self.keys[position];
        self.bytes[at..at + KEY_BYTES].copy_from_slice(&key(number));
        if let Some(at) = self.values.get(position) {
            self.bytes[*at..at + VALUE_BYTES].copy_from_slice(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_gets_its_own_key_and_value() {
        let mut message = Vec::new();
        for position in 0..3 {
            message.extend_from_slice(b"<");
            message.extend_from_slice(&key_place(position));
            message.extend_from_slice(b"=");
            message.extend_from_slice(&VALUE_PLACE);
            message.extend_from_slice(b">");
        }
        let mut template = Template::new(message, 3);
        for position in 0..3 {
            template.patch(position, 10 + position as u64, &[position as u8; VALUE_BYTES]);
        }
        let mut expected = Vec::new();
        for position in 0..3u8 {
            expected.extend_from_slice(b"<");
            expected.extend_from_slice(&key(10 + u64::from(position)));
            expected.extend_from_slice(b"=");
            expected.extend_from_slice(&[position; VALUE_BYTES]);
            expected.extend_from_slice(b">");
        }
        assert_eq!(template.bytes(), expected);
    }

    #[test]
    fn a_message_without_values_gets_keys_alone() {
        let mut template = Template::new(key_place(0).to_vec(), 1);
        template.patch(0, 5, &[1; VALUE_BYTES]);
        assert_eq!(template.bytes(), key(5));
    }
}
