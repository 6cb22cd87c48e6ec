//! Who may feed the stream: a HELLO waits until what came before is stored or dropped, and until the epoch is ours; then it
//! is welcomed or refused.

use std::sync::Arc;

use format::object::LogKind;
use format::wire::{Hello, Refusal, Refused};
use model::LogHead;
use probe::Rule;
use store::{EpochLog, Genesis, StoreError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{ALIVE, ATTACH_MAX, Actor, Attaching};
use crate::session::SessionHandle;
use crate::share::{Opened, open_stream};
use crate::stream::epoch::{EpochOver, OpenEpoch};
use crate::stream::upload::with_causes;
use crate::stream::{Admitted, admit_with};

impl Actor {
    pub(super) fn on_attach(
        &mut self,
        hello: Box<Hello>,
        session: Arc<SessionHandle>,
        reply: oneshot::Sender<Result<Admitted, Refused>>,
    ) {
        let rival = [self.session.as_ref(), self.attaching.as_ref().map(|attaching| &attaching.session)]
            .into_iter()
            .flatten()
            .find(|other| other.instance != session.instance && other.is_alive(ALIVE))
            // Careless: whoever comes last is the one who is meant.
            .filter(|_| self.context.rules.server.hold(Rule::SecondAgentRefused));
        let refused = if self.stopping {
            Some((Refusal::Busy, "this process server is stopping".to_owned()))
        } else {
            rival.map(|other| {
                let text = format!("another agent of this machine is connected from {} and alive", other.address);
                (Refusal::SecondAgent, text)
            })
        };
        if let Some((reason, text)) = refused {
            let _ = reply.send(Err(Refused { reason, text }));
            return;
        }
        self.end_session();
        self.refuse(Refusal::Busy, "replaced by a newer connection of this agent".to_owned());
        self.attaching = Some(Attaching { hello, session, reply, until: Instant::now() + ATTACH_MAX });
    }

    /// Ends the session: what has no slot is dropped, what has one goes on.
    pub(super) fn end_session(&mut self) {
        if let Some(session) = self.session.take() {
            session.ended.cancel();
            self.former = Some(session);
        }
        self.pending.clear();
        if !self.context.rules.server.hold(Rule::SlotFilled)
            && let Some(epoch) = &mut self.epoch
        {
            // Careless: nobody waits for these any more.
            epoch.abandon();
        }
    }

    /// Whether the epoch holds nothing any more that a head named in WELCOME would not count.
    fn may_welcome(&self) -> bool {
        // Careless: the head is acknowledged, what else does an agent need?
        let careless = !self.context.rules.server.hold(Rule::WelcomeAfterDrain);
        self.epoch.as_ref().is_some_and(|epoch| epoch.is_drained() || careless)
    }

    /// Moves a waiting HELLO on: drain what has slots, make sure the epoch is ours or open one, then decide.
    pub(super) fn attach(&mut self, now: Instant) {
        let Some(attaching) = &self.attaching else { return };
        let may_welcome = self.may_welcome();
        if attaching.reply.is_closed() {
            self.attaching = None;
        } else if attaching.until <= now {
            self.refuse(
                Refusal::StoreUnavailable,
                "the store does not take what was sent before: try again".to_owned(),
            );
        } else if let Some(epoch) = &mut self.epoch {
            epoch.close_segment();
            if may_welcome && self.verifying.is_none() {
                let writer = epoch.writer();
                self.verifying = Some(Box::pin(async move { writer.look().await }));
            }
        } else if self.opening.is_none() {
            // No manifest is asked: prefix GC leaves the opening of the folded epoch, and all behind it, to whoever
            // attaches, so damage in the manifest log never keeps a source from being replicated.
            let log = EpochLog {
                store: self.context.store.clone(),
                keys: self.context.keys.clone(),
                machine: self.context.machine.clone(),
                kind: LogKind::Stream,
                base: Arc::new(Genesis),
            };
            let (rules, sharing) = (self.context.rules.log, self.context.sharing.clone());
            self.opening = Some(Box::pin(async move { open_stream(&log, rules, sharing.as_ref()).await }));
        }
    }

    pub(super) fn on_opened(&mut self, result: Result<Opened, StoreError>) {
        match result {
            Ok(opened) => {
                let epoch = OpenEpoch::new(self.context.clone(), opened, self.results.0.clone());
                let (_, head) = epoch.acked();
                tracing::info!(machine = %self.context.machine, epoch = epoch.number(), head = %head.position, "stream opened");
                self.epoch = Some(epoch);
                self.context.shared.store_answered(None);
                self.welcome(head);
            }
            Err(error) => self.store_failed("open the stream", &error),
        }
    }

    pub(super) fn on_verified(&mut self, result: Result<(), StoreError>) {
        match (result, &self.epoch) {
            (Ok(()), Some(epoch)) if self.may_welcome() => {
                let (_, head) = epoch.acked();
                self.welcome(head);
            }
            (Ok(()), _) => {}
            // Another server took the stream over and the agent came back here: the next step opens a new epoch.
            (Err(error @ StoreError::Fenced { .. }), _) => self.epoch_over(&EpochOver::Store(error)),
            // Nobody waits for the look of a stream at rest: the next one will tell.
            (Err(_), _) if self.attaching.is_none() => {}
            (Err(error), _) => self.store_failed("look for other writers", &error),
        }
    }

    fn store_failed(&mut self, doing: &str, error: &StoreError) {
        let (reason, text) = (refusal_of(error), format!("cannot {doing}: {}", with_causes(error)));
        match error {
            StoreError::Damaged { .. } | StoreError::Missing { .. } | StoreError::WrongKey { .. } => {
                tracing::error!(machine = %self.context.machine, text, "the stream's log cannot be continued");
            }
            _ => tracing::warn!(machine = %self.context.machine, text, "agent must wait"),
        }
        crate::metrics::store_error("attach");
        self.refuse(reason, text);
    }

    fn welcome(&mut self, head: LogHead) {
        let Some(Attaching { hello, session, reply, .. }) = self.attaching.take() else { return };
        let (seen, draining) = self.draining;
        let draining = draining && seen == head.position.seq;
        let decision = admit_with(&head, &hello, self.context.rules.server);
        let decision = decision.map(|admitted| Admitted { draining, ..admitted });
        match &decision {
            Ok(_) => {
                tracing::info!(machine = %self.context.machine, address = session.address, head = %head.position, "agent welcome");
                self.context.shared.update(|live| live.received_seq = head.position.seq.0);
                self.session = Some(session);
            }
            Err(refused) => {
                tracing::warn!(machine = %self.context.machine, address = session.address, reason = ?refused.reason,
                    text = refused.text, "agent refused");
            }
        }
        if reply.send(decision).is_err() {
            self.session = None;
        }
    }

    pub(super) fn refuse(&mut self, reason: Refusal, text: String) {
        if let Some(attaching) = self.attaching.take() {
            let _ = attaching.reply.send(Err(Refused { reason, text }));
        }
    }
}

fn refusal_of(error: &StoreError) -> Refusal {
    match error {
        StoreError::Fenced { .. } => Refusal::Busy,
        _ => Refusal::StoreUnavailable,
    }
}
