//! Events for all who listen: one reader of the store for the whole process, and the bounds on streams.
//!
//! Never reads the store while nobody listens, and knows nothing of HTTP (see `api::events`).

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use crate::{
    clock::{Clock, Nanos, nanos},
    job::JobId,
    store::{
        StoreError,
        events::{Event, EventId, EventLog, EventPage},
    },
};

/// How often the store is read while somebody listens.
pub const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Events that are read at a time.
const BATCH: usize = 500;
/// Batches that are kept for listeners who have not taken them yet. Whoever is slower reads the store.
const MOST_KEPT: usize = 16;
/// Streams in all, and of one key.
const MOST_STREAMS: usize = 1000;
const MOST_OF_A_KEY: usize = 100;
/// A client that reconnects gets so many times the overlap again: nobody knows whether the store stood still before it left.
const STOOD_STILL: u32 = 10;
/// Streams that read the store at the same time; others wait.
const MOST_READING: usize = 8;

/// Events that were read together, and the place in the log up to which a listener then has all.
#[derive(Debug)]
pub struct Batch {
    pub events: Vec<Event>,
    pub reached: EventId,
}

/// What the listeners of one process share.
pub struct Events {
    log: Arc<dyn EventLog>,
    clock: Clock,
    live: broadcast::Sender<Arc<Batch>>,
    /// Nothing while nobody listens.
    reader: tokio::sync::Mutex<Option<Reader>>,
    /// Rung when the first listener comes.
    wanted: Notify,
    closed: CancellationToken,
    /// One permit for each stream that may still be opened.
    pub free_streams: Arc<Semaphore>,
    of_keys: Mutex<HashMap<String, usize>>,
    reading: Semaphore,
}

/// How far the store has been read.
struct Reader {
    reached: EventId,
    /// When looks ended, and what they had reached: the newest that is as old as the overlap, and those since.
    looks: VecDeque<(Nanos, EventId)>,
    /// Events before `reached` that will be read again.
    recent: BTreeSet<EventId>,
}

/// Why no more streams can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    InAll,
    OfKey,
}

/// Counts one open stream, until it is dropped.
pub struct OpenStream {
    events: Arc<Events>,
    key: Option<String>,
    _permit: OwnedSemaphorePermit,
}

impl Events {
    pub fn new(log: Arc<dyn EventLog>, clock: Clock) -> Events {
        Events {
            log,
            clock,
            live: broadcast::Sender::new(MOST_KEPT),
            reader: tokio::sync::Mutex::default(),
            wanted: Notify::new(),
            closed: CancellationToken::new(),
            free_streams: Arc::new(Semaphore::new(MOST_STREAMS)),
            of_keys: Mutex::default(),
            reading: Semaphore::new(MOST_READING),
        }
    }

    /// Reads the store for all listeners, while there are any, until [`Events::close`].
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.wanted.notified() => {}
                () = self.closed() => return,
            }
            let mut somebody_listens = true;
            while somebody_listens {
                tokio::select! {
                    () = self.clock.sleep_until(self.clock.next_beat(LOOK_EVERY)) => {}
                    () = self.closed() => return,
                }
                match self.look().await {
                    Ok(listens) => somebody_listens = listens,
                    Err(error) => tracing::debug!(%error, "events could not be read; they are read again soon"),
                }
            }
        }
    }

    /// Sends the listeners what is new; says whether there are any.
    async fn look(&self) -> Result<bool, StoreError> {
        let mut kept = self.reader.lock().await;
        if self.live.receiver_count() == 0 {
            *kept = None;
        }
        let Some(reader) = &mut *kept else { return Ok(false) };
        let send = |events, reached| {
            // An error means that the last listener has just gone.
            let _ = self.live.send(Arc::new(Batch { events, reached }));
        };
        reader.read(&*self.log, &self.clock, send).await?;
        Ok(true)
    }

    /// Begins to listen: receives everything that is stored from now on. Also returns the place in the log where that begins.
    pub async fn listen(&self) -> Result<(broadcast::Receiver<Arc<Batch>>, EventId), StoreError> {
        let mut kept = self.reader.lock().await;
        if kept.is_none() {
            *kept = Some(Reader::at_the_end(&*self.log, &self.clock).await?);
            self.wanted.notify_one();
        }
        // While the reader is locked: what it reads next is sent to this listener too.
        Ok((self.live.subscribe(), kept.as_ref().map_or(EventId::FIRST, |reader| reader.reached)))
    }

    /// Ends all streams: the service is stopping.
    pub fn close(&self) {
        self.closed.cancel();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Returns when the streams are to end.
    pub fn closed(&self) -> WaitForCancellationFuture<'_> {
        self.closed.cancelled()
    }

    /// Earlier events, for a client that has reconnected or is slow.
    pub async fn after(&self, place: EventId, most: usize) -> Result<EventPage, StoreError> {
        let _turn = self.reading.acquire().await;
        self.log.after(place, most).await
    }

    /// Where to begin for all events after this place, also if the store stood still for a while: see [`EventLog::overlap`].
    pub fn before(&self, place: EventId) -> EventId {
        place.earlier_by(self.log.overlap() * STOOD_STILL)
    }

    /// How many events are after this place, counted up to `most`.
    pub async fn count_after(&self, place: EventId, most: u64) -> Result<u64, StoreError> {
        let _turn = self.reading.acquire().await;
        self.log.count_after(place, most).await
    }

    pub async fn of_job(&self, id: JobId) -> Result<Option<Event>, StoreError> {
        self.log.of_job(id).await
    }

    /// Counts one more stream with this key, if there may be one.
    pub fn open_stream(self: &Arc<Self>, key: Option<&str>) -> Result<OpenStream, Full> {
        let permit = self.free_streams.clone().try_acquire_owned().map_err(|_| Full::InAll)?;
        if let Some(key) = key {
            let mut of_keys = self.of_keys();
            let open = of_keys.entry(key.to_owned()).or_default();
            if *open >= MOST_OF_A_KEY {
                return Err(Full::OfKey);
            }
            *open += 1;
        }
        Ok(OpenStream { events: self.clone(), key: key.map(str::to_owned), _permit: permit })
    }

    /// A panic elsewhere does not make the counts wrong.
    fn of_keys(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.of_keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// A reader that has read everything.
    async fn at_the_end(log: &dyn EventLog, clock: &Clock) -> Result<Reader, StoreError> {
        let mut reader = Reader { reached: log.end().await?, looks: VecDeque::new(), recent: BTreeSet::new() };
        reader.read(log, clock, |_, _| {}).await?;
        Ok(reader)
    }

    /// Where the next look begins: before whatever may have been stored late since the last one. If the store stood still, the look that waited for
    /// it does not count until it is as old as the overlap.
    fn from(&mut self, overlap: Duration, now: Nanos) -> EventId {
        while self.looks.get(1).is_some_and(|(ended, _)| now.saturating_sub(*ended) >= nanos(overlap)) {
            self.looks.pop_front();
        }
        self.looks.front().map_or(self.reached, |(_, reached)| *reached).earlier_by(overlap)
    }

    /// Passes on the events that are new, each time with the place up to which all have been read.
    async fn read(
        &mut self,
        log: &dyn EventLog,
        clock: &Clock,
        mut pass_on: impl FnMut(Vec<Event>, EventId) + Send,
    ) -> Result<(), StoreError> {
        let mut from = self.from(log.overlap(), clock.nanos());
        loop {
            let page = log.after(from, BATCH).await?;
            self.reached = self.reached.max(page.reached);
            let new: Vec<Event> = page.events.into_iter().filter(|event| self.recent.insert(event.id)).collect();
            if !new.is_empty() {
                pass_on(new, self.reached);
            }
            if !page.more {
                break;
            }
            from = page.reached;
        }
        self.looks.push_back((clock.nanos(), self.reached));
        let next = self.from(log.overlap(), clock.nanos());
        self.recent = self.recent.split_off(&next);
        Ok(())
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let Some(key) = &self.key else { return };
        let mut of_keys = self.events.of_keys();
        if let Some(open) = of_keys.get_mut(key) {
            *open -= 1;
            if *open == 0 {
                of_keys.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::{clock::Time, job::Status};

    const SECOND: i64 = 1_000_000;

    /// Events by their numbers, as a store has them.
    #[derive(Default)]
    struct Stored(Mutex<BTreeSet<EventId>>);

    impl Stored {
        fn add(&self, number: i64) {
            self.0.lock().unwrap().insert(EventId { number, job: JobId::MIN });
        }
    }

    #[async_trait]
    impl EventLog for Stored {
        fn overlap(&self) -> Duration {
            Duration::from_secs(1)
        }

        async fn end(&self) -> Result<EventId, StoreError> {
            Ok(self.0.lock().unwrap().last().copied().unwrap_or(EventId::FIRST))
        }

        async fn after(&self, place: EventId, _most: usize) -> Result<EventPage, StoreError> {
            let ids: Vec<EventId> = self.0.lock().unwrap().iter().filter(|id| **id > place).copied().collect();
            let reached = ids.last().copied().unwrap_or(place);
            let event = |id| Event {
                id,
                vendor: "v".into(),
                tenant: "t".into(),
                status: Status::Complete,
                tags: Vec::new(),
                at: Time(0),
            };
            Ok(EventPage { events: ids.into_iter().map(event).collect(), reached, more: false })
        }

        async fn count_after(&self, _: EventId, _: u64) -> Result<u64, StoreError> {
            Ok(0)
        }

        async fn of_job(&self, _: JobId) -> Result<Option<Event>, StoreError> {
            Ok(None)
        }
    }

    #[tokio::test]
    async fn an_event_that_is_as_late_as_the_store_stood_still_is_passed_on_once() {
        let (stored, clock) = (Stored::default(), Clock::manual(Time(0)));
        stored.add(10 * SECOND);
        let mut reader = Reader::at_the_end(&stored, &clock).await.unwrap();
        let mut look = async || {
            let mut seen = Vec::new();
            let pass_on = |events: Vec<Event>, _| seen.extend(events.iter().map(|event| event.id.number));
            reader.read(&stored, &clock, pass_on).await.unwrap();
            seen
        };
        clock.advance(Duration::from_millis(500));
        assert_eq!(look().await, [0; 0]);
        // The store stands still for six seconds. The first look that it answers finds what was stored after the pause.
        clock.advance(Duration::from_secs(6));
        stored.add(16 * SECOND);
        assert_eq!(look().await, [16 * SECOND]);
        // What got its number before the pause comes only now.
        stored.add(10 * SECOND + 1);
        clock.advance(Duration::from_millis(500));
        assert_eq!(look().await, [10 * SECOND + 1]);
        for _ in 0..4 {
            clock.advance(Duration::from_millis(500));
            assert_eq!(look().await, [0; 0]);
        }
    }
}
