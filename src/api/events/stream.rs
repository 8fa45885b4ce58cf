//! One open stream of events: what its reader gets, and when.
//!
//! Never keeps more for a reader than one piece of its answer: what a slow reader misses is read again from the store, or counted.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{
    super::{App, access::By, connection::Peer, edge},
    LastEventId, Shows, write_id,
};
use crate::{
    clock::{Nanos, Time, nanos},
    events::{Batch, LOOK_EVERY, OpenStream},
    job::JobId,
    store::{
        StoreError, With,
        events::{Event, EventId},
    },
};

/// A stream can go on after an event that is followed by this many at most.
const MOST_MISSED: u64 = 100_000;
/// Live events of one stream in a second; the rest is counted.
const MOST_A_SECOND: u32 = 200;
const SECOND: Duration = Duration::from_secs(1);
/// How often a line without events gets a comment.
const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// Events of the past that are sent at a time.
const PAGE: usize = 200;
/// What readers wait before they connect again, in milliseconds.
const RETRY: &str = "retry: 1000\n";

/// An event as a reader gets it.
#[derive(Serialize)]
struct EventView<'a> {
    request_id: JobId,
    vendor: &'a str,
    tenant: &'a str,
    status: &'static str,
    at: Time,
}

/// One open stream.
pub(super) struct Stream {
    app: Arc<App>,
    by: By,
    shows: Shows,
    peer: Peer,
    live: Receiver<Arc<Batch>>,
    /// Up to here it has seen all events.
    reached: EventId,
    /// Where it reads the store, until it has caught up with the live events, which wait meanwhile.
    behind: Option<EventId>,
    /// What it has read there up to here need not be sent again.
    known: EventId,
    /// What the stream of one job has sent last.
    last: Option<EventId>,
    /// When the second began in which live events are counted, and how many were sent in it.
    second: (Nanos, u32),
    /// Events that were only counted, and not yet told of.
    left_out: u64,
    comment_at: Nanos,
    /// What is to be sent.
    out: String,
    is_over: bool,
    _open_stream: OpenStream,
}

impl Stream {
    pub(super) fn new(
        app: Arc<App>,
        by: By,
        shows: Shows,
        peer: Peer,
        open_stream: OpenStream,
        (live, reached): (Receiver<Arc<Batch>>, EventId),
    ) -> Stream {
        let comment_at = app.clock.nanos() + nanos(COMMENT_EVERY);
        Stream {
            app,
            by,
            shows,
            peer,
            live,
            reached,
            behind: None,
            known: EventId::FIRST,
            last: None,
            second: (0, 0),
            left_out: 0,
            comment_at,
            out: RETRY.to_owned(),
            is_over: false,
            _open_stream: open_stream,
        }
    }

    /// Where the stream begins: now, or after the last event that its reader has got.
    pub(super) async fn begin(&mut self, last: LastEventId) {
        match last {
            // The stream of one job says how it is, unless its reader knows.
            last if self.shows.job.is_some() => {
                self.last = last.and_then(Result::ok);
                self.behind = Some(EventId::FIRST);
                self.out.push('\n');
            }
            // A reader that gets no event before it is cut off can go on from here.
            None => self.out.push_str(&format!("id: {}\n\n", self.place())),
            Some(Ok(last)) => {
                self.out.push('\n');
                // There may be none after it, if its job was deleted; and it may be from another store.
                self.go_on_after(last.min(self.reached)).await;
            }
            Some(Err(())) => self.reset().await,
        }
    }

    /// The next piece of the answer; nothing at its end.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            // In this order: whoever has lost its key gets nothing more.
            if self.app.events.is_closed() || !self.app.access.keys.is_still_good(&self.by.0) {
                return None;
            }
            if !self.out.is_empty() {
                break;
            }
            if self.is_over {
                return None;
            }
            match self.behind {
                Some(from) => self.read(from).await,
                None => self.follow().await,
            }
        }
        self.comment_at = self.app.clock.nanos() + nanos(COMMENT_EVERY);
        edge::charged_piece(&self.app.edge.memory, std::mem::take(&mut self.out).into()).await
    }

    /// Waits for live events, or for the time to do something else.
    async fn follow(&mut self) {
        let clock = &self.app.clock;
        let key_at = self.by.0.key().map(|_| clock.next_beat(LOOK_EVERY));
        let count_at = (self.left_out > 0).then(|| self.second.0 + nanos(SECOND));
        let wake_at = [key_at, count_at].into_iter().flatten().fold(self.comment_at, Nanos::min);
        tokio::select! {
            batch = self.live.recv() => match batch {
                Ok(batch) => self.take(&batch),
                Err(RecvError::Lagged(_)) => self.go_on_after(self.reached).await,
                Err(RecvError::Closed) => self.is_over = true,
            },
            () = clock.sleep_until(wake_at) => self.on_time(),
            () = self.peer.left() => self.is_over = true,
            () = self.app.events.closed() => {}
        }
    }

    /// Live events.
    fn take(&mut self, batch: &Batch) {
        self.end_second(self.app.clock.nanos());
        for event in &batch.events {
            if event.id <= self.known || !self.shows.includes(event) {
                continue;
            }
            // A job has few events, and the last of them ends its stream.
            if self.second.1 >= MOST_A_SECOND && self.shows.job.is_none() {
                self.left_out += 1;
            } else {
                self.second.1 += 1;
                self.put(event);
            }
        }
        self.reached = self.reached.max(batch.reached);
    }

    /// Begins a new second if the last one is over.
    fn end_second(&mut self, now: Nanos) {
        if now - self.second.0 >= nanos(SECOND) {
            self.tell_left_out();
            self.second = (now, 0);
        }
    }

    fn on_time(&mut self) {
        let now = self.app.clock.nanos();
        self.end_second(now);
        if now < self.comment_at {
            return;
        }
        self.tell_left_out();
        if self.shows.job.is_some() {
            self.out.push_str(":\n\n");
            self.behind = Some(EventId::FIRST);
        } else {
            // With the place reached, so that a client with few events need not go far back when it reconnects.
            self.out.push_str(&format!(":\nid: {}\n\n", self.place()));
        }
    }

    /// The place that it has reached, as an id that names no job: it may be another tenant's.
    fn place(&self) -> String {
        write_id(EventId::after_all_at(self.reached.number))
    }

    /// Without an id: whoever connects again at once goes on with what was left out.
    fn tell_left_out(&mut self) {
        if self.left_out > 0 {
            self.out.push_str(&format!("event: lag\ndata: {{\"missed\":{}}}\n\n", self.left_out));
            self.left_out = 0;
        }
    }

    fn put(&mut self, event: &Event) {
        if self.shows.job.is_some() {
            self.is_over |= event.status.has_ended();
            if self.last.replace(event.id) == Some(event.id) {
                return;
            }
        }
        let view = EventView {
            request_id: event.id.job,
            vendor: &event.vendor,
            tenant: &event.tenant,
            status: event.status.as_str(),
            at: event.at,
        };
        let data = serde_json::to_string(&view).expect("an event's view is plain data");
        self.out.push_str(&format!("id: {}\nevent: job\ndata: {data}\n\n", write_id(event.id)));
    }

    /// Goes on after an event: the store has what came since, and is read if that is not too much.
    async fn go_on_after(&mut self, place: EventId) {
        self.tell_left_out();
        if self.shows.job.is_some() {
            self.behind = Some(EventId::FIRST);
            return;
        }
        self.reached = place;
        match self.app.events.count_after(place, MOST_MISSED + 1).await {
            Ok(missed) if missed > MOST_MISSED => self.reset().await,
            Ok(_) => self.behind = Some(self.app.events.before(place)),
            Err(error) => self.cannot_read(&error),
        }
    }

    /// Begins anew: what the reader has missed it has to find in other ways.
    async fn reset(&mut self) {
        match self.app.events.listen().await {
            Ok((live, reached)) => {
                (self.live, self.reached) = (live, reached);
                self.out.push_str(&format!("id: {}\nevent: reset\ndata: {{}}\n\n", self.place()));
            }
            Err(error) => self.cannot_read(&error),
        }
    }

    /// Reads some of what came before the live events.
    async fn read(&mut self, from: EventId) {
        if let Some(job) = self.shows.job {
            self.behind = None;
            return self.look_at(job).await;
        }
        match self.app.events.after(from, PAGE).await {
            Ok(page) => {
                for event in &page.events {
                    if self.shows.includes(event) {
                        self.put(event);
                    }
                }
                self.reached = self.reached.max(page.reached);
                self.behind = page.more.then_some(page.reached);
                self.known = self.app.events.before(self.reached);
            }
            Err(error) => self.cannot_read(&error),
        }
    }

    /// Looks how one job is; its stream also ends if the job was deleted.
    async fn look_at(&mut self, job: JobId) {
        match self.app.events.of_job(job).await {
            Ok(Some(event)) => self.put(&event),
            Ok(None) => match self.app.store.find(self.by.sees(), job, With::NEITHER).await {
                Ok(found) => self.is_over |= found.is_none(),
                Err(error) => self.cannot_read(&error),
            },
            Err(error) => self.cannot_read(&error),
        }
    }

    /// Ends the stream: its reader connects again and goes on where it was.
    fn cannot_read(&mut self, error: &StoreError) {
        tracing::debug!(%error, "a stream of events ends: the store could not be read");
        self.is_over = true;
    }
}
