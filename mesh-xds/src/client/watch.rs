//! One watched type.

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::resource::{self, Resource, TypeUrl};

use super::core::{Delivery, Lapse, LapseReason, Received};
use super::run::Command;
use super::state::Rejection;
use super::subscription::Names;

/// What a watch is told.
#[derive(Debug)]
pub(super) enum Event {
    Delivery(Delivery),
    Lapse(Lapse),
}

/// A new or changed resource. Of a secret the `Debug` form leaves the content out.
#[derive(Clone, PartialEq)]
pub struct Upsert<T> {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The message.
    pub resource: Arc<T>,
    /// Whether the version in use is this one already: the server said it again.
    pub unchanged: bool,
}

impl<T: Resource + fmt::Debug> fmt::Debug for Upsert<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Upsert");
        shown.field("name", &self.name).field("version", &self.version).field("unchanged", &self.unchanged);
        if T::TYPE == TypeUrl::SECRET {
            return shown.finish_non_exhaustive();
        }
        shown.field("resource", &self.resource).finish()
    }
}

/// The resources of one type, as they come. Dropping it ends the subscription.
pub struct Watch<T: Resource> {
    inbox: mpsc::UnboundedReceiver<Event>,
    commands: mpsc::UnboundedSender<Command>,
    kind: PhantomData<fn() -> T>,
}

impl<T: Resource> Watch<T> {
    pub(super) const fn new(
        inbox: mpsc::UnboundedReceiver<Event>,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Self {
        Self { inbox, commands, kind: PhantomData }
    }

    /// The next update; `None` when the client has stopped or the type was watched already. Cancel safe.
    ///
    /// Every update has to be decided: the server hears nothing about it before. The first one may be empty, which
    /// says that the server has nothing.
    pub async fn next(&mut self) -> Option<Update<T>> {
        self.next_encoded().await.map(Encoded::decode)
    }

    /// The same, for a consumer that decodes one resource after the other. Cancel safe.
    pub(super) async fn next_encoded(&mut self) -> Option<Encoded<T>> {
        Some(match self.inbox.recv().await? {
            Event::Lapse(lapse) => Encoded { left: VecDeque::new(), update: Update::lapsed(lapse) },
            Event::Delivery(delivery) => Encoded::new(delivery, self.commands.clone()),
        })
    }

    /// Replaces the subscription.
    pub fn set(&self, names: Names) {
        let _ = self.commands.send(Command::Set { type_url: T::TYPE, names });
    }

    /// Asks for names that are subscribed to already once more (Delta).
    pub fn ask_again(&self, names: Vec<String>) {
        let _ = self.commands.send(Command::Again { type_url: T::TYPE, names });
    }
}

impl<T: Resource> Drop for Watch<T> {
    fn drop(&mut self) {
        self.inbox.close();
        let _ = self.commands.send(Command::Unwatch { type_url: T::TYPE });
    }
}

impl<T: Resource> fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("type", &T::TYPE).finish_non_exhaustive()
    }
}

/// What one response brought, or a resource that lapsed.
///
/// Reject what cannot be used, then [`accept`](Self::accept) the rest. An update that is dropped undecided is rejected
/// as a whole.
pub struct Update<T> {
    /// New and changed resources.
    pub upserts: VecDeque<Upsert<T>>,
    /// Names that are gone, do not exist, did not come in time, or whose time to live ran out.
    pub removed: Vec<String>,
    /// Why something lapsed without a response; then there is nothing to decide.
    pub lapse: Option<LapseReason>,
    rejections: Vec<Rejection>,
    names: Vec<String>,
    decision: Option<(u64, mpsc::UnboundedSender<Command>)>,
}

impl<T> Update<T> {
    fn lapsed(lapse: Lapse) -> Self {
        Self {
            upserts: VecDeque::new(),
            removed: vec![lapse.name],
            lapse: Some(lapse.reason),
            rejections: Vec::new(),
            names: Vec::new(),
            decision: None,
        }
    }

    /// Whether there is nothing to apply.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removed.is_empty()
    }

    /// Rejects one resource; the server is told the name and the reason.
    pub fn reject(&mut self, name: &str, reason: impl Into<String>) {
        self.rejections.push(Rejection { name: name.to_owned(), reason: reason.into() });
    }

    /// Accepts everything that was not rejected, which acknowledges the response.
    pub fn accept(mut self) {
        if let Some((id, commands)) = self.decision.take() {
            let rejections = std::mem::take(&mut self.rejections);
            let _ = commands.send(Command::Decide { id, rejections });
        }
    }
}

impl<T: Resource + fmt::Debug> fmt::Debug for Update<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Update")
            .field("upserts", &self.upserts)
            .field("removed", &self.removed)
            .field("lapse", &self.lapse)
            .field("rejections", &self.rejections)
            .finish_non_exhaustive()
    }
}

impl<T> Drop for Update<T> {
    fn drop(&mut self) {
        if let Some((id, commands)) = self.decision.take() {
            let reject =
                |name: &String| Rejection { name: name.clone(), reason: "was dropped undecided".to_owned() };
            let rejections = self.names.iter().map(reject).collect();
            let _ = commands.send(Command::Decide { id, rejections });
        }
    }
}

/// An update whose resources are decoded when they are taken: thousands of decoded resources take ten times the memory of
/// their bytes.
pub(super) struct Encoded<T> {
    left: VecDeque<Received>,
    /// The rest of it; what is taken is not among its resources.
    pub(super) update: Update<T>,
}

impl<T> fmt::Debug for Encoded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoded").field("left", &self.left).finish_non_exhaustive()
    }
}

impl<T: Resource> Encoded<T> {
    fn new(delivery: Delivery, commands: mpsc::UnboundedSender<Command>) -> Self {
        let update = Update {
            upserts: VecDeque::new(),
            removed: delivery.removed,
            lapse: None,
            rejections: Vec::new(),
            names: delivery.resources.iter().map(|received| received.name.clone()).collect(),
            decision: Some((delivery.id, commands)),
        };
        Self { left: delivery.resources.into(), update }
    }

    /// The next resource; one that cannot be decoded is rejected and passed over.
    pub(super) fn take(&mut self) -> Option<Upsert<T>> {
        loop {
            let Received { name, version, resource, unchanged, .. } = self.left.pop_front()?;
            match resource::decode::<T>(&resource) {
                Ok(decoded) => return Some(Upsert { name, version, resource: Arc::new(decoded), unchanged }),
                Err(error) => self.update.reject(&name, error.to_string()),
            }
        }
    }

    /// Whether everything was taken.
    pub(super) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    fn decode(mut self) -> Update<T> {
        while let Some(upsert) = self.take() {
            self.update.upserts.push_back(upsert);
        }
        self.update
    }
}
