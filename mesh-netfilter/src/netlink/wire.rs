//! Netlink messages and attributes as bytes, and sans-IO reading of what the kernel answers.

/// Length of `nlmsghdr`.
const HEADER: usize = 16;
/// Length of `nfgenmsg`.
const GENERIC: usize = 4;
/// Bits of an attribute's type that are flags (nested, network byte order).
const TYPE_FLAGS: u16 = 0xc000;
const NESTED: u16 = 0x8000;

/// Several messages in one buffer.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    message: usize,
}

impl Messages {
    /// Begins a message. The payload's fixed part (`nfgenmsg`, `ifinfomsg`, ...) follows as `fixed`.
    pub(crate) fn begin(&mut self, kind: u16, flags: u16, sequence: u32, fixed: &[u8]) {
        self.message = self.bytes.len();
        self.bytes.extend_from_slice(&0_u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0_u32.to_ne_bytes());
        self.bytes.extend_from_slice(fixed);
        self.pad();
        self.close();
    }

    /// Sets the length of the current message to what has been written.
    fn close(&mut self) {
        // A batch is bounded far below 4 GiB by the socket's buffer.
        let length = u32::try_from(self.bytes.len() - self.message).unwrap_or(u32::MAX);
        self.bytes[self.message..self.message + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    /// An attribute of raw bytes.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self.close();
    }

    /// A big-endian number, as nf_tables wants them.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A string with its terminator.
    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let mut text = Vec::with_capacity(value.len() + 1);
        text.extend_from_slice(value.as_bytes());
        text.push(0);
        self.bytes(kind, &text);
    }

    /// An attribute that holds attributes.
    pub(crate) fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        inside(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.close();
    }

    /// What to send.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// One message that was received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    /// `nlmsg_type`.
    pub(crate) kind: u16,
    /// `nlmsg_flags`.
    pub(crate) flags: u16,
    /// `nlmsg_seq`.
    pub(crate) sequence: u32,
    /// What follows the header.
    pub(crate) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes after an `nfgenmsg`.
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.payload.get(GENERIC..).unwrap_or_default())
    }

    /// The error number of an acknowledgement (0 is success).
    pub(crate) fn errno(&self) -> Option<i32> {
        self.payload.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes).saturating_neg())
    }
}

/// Walks the messages in a received buffer; stops at the first that is cut off.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let word = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
        let length = usize::try_from(u32::from_ne_bytes(word(0))).ok()?;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes(word(8)),
            payload: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Attributes in the order in which they stand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first attribute of this type.
    pub(crate) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// The attributes inside one.
    pub(crate) fn inside(self, kind: u16) -> Option<Self> {
        self.get(kind).map(Self)
    }

    /// A big-endian number.
    pub(crate) fn be32(self, kind: u16) -> Option<u32> {
        self.get(kind)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    /// A big-endian 64 bit number.
    pub(crate) fn be64(self, kind: u16) -> Option<u64> {
        self.get(kind)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// A string up to its terminator.
    pub(crate) fn string(self, kind: u16) -> Option<&'a str> {
        let bytes = self.get(kind)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).ok()
    }
}

impl<'a> IntoIterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);
    type IntoIter = AttributeIter<'a>;

    fn into_iter(self) -> AttributeIter<'a> {
        AttributeIter(self.0)
    }
}

/// Iterator over [`Attributes`]; stops at the first that is cut off.
#[derive(Debug)]
pub(crate) struct AttributeIter<'a>(&'a [u8]);

impl<'a> Iterator for AttributeIter<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [l0, l1, t0, t1] = *self.0.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([t0, t1]) & !TYPE_FLAGS, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut out = Messages::default();
        out.begin(7, 1, 42, &[1, 0, 0, 0]);
        out.string(1, "mesh");
        out.nest(4, |out| out.be32(2, 0xdead_beef));
        out.begin(8, 0, 43, &[1, 0, 0, 0]);
        let read: Vec<_> = messages(out.as_bytes()).collect();
        assert_eq!(
            read.iter().map(|each| (each.kind, each.sequence)).collect::<Vec<_>>(),
            [(7, 42), (8, 43)]
        );
        let attributes = read[0].attributes();
        assert_eq!(attributes.string(1), Some("mesh"));
        assert_eq!(attributes.inside(4).and_then(|inside| inside.be32(2)), Some(0xdead_beef));
    }

    #[test]
    fn cut_off_input_ends_the_walk() {
        let mut out = Messages::default();
        out.begin(7, 1, 42, &[1, 0, 0, 0]);
        out.string(1, "mesh");
        for length in 0..out.as_bytes().len() {
            assert_eq!(messages(&out.as_bytes()[..length]).count(), 0);
        }
        assert_eq!(Attributes(&[3, 0, 1, 0]).into_iter().count(), 0);
    }
}
