//! The queue before the one thread that computes: first come, first served, and short enough that
//! nobody waits in it for long.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use anyhow::{Context, Result, anyhow};
use hyper::StatusCode;
use tokio::sync::{mpsc, oneshot};

use crate::error::ApiError;

/// Requests that wait: more than 50 clients with one each, a few seconds of a micro model's.
const LENGTH: usize = 64;

/// An answer as JSON, or why there is none.
pub(crate) type ApiResponse = Result<Vec<u8>, ApiError>;

/// A question on its way to the thread that answers.
struct QueuedRequest<Q> {
    question: Q,
    answer: oneshot::Sender<ApiResponse>,
}

/// Where questions are put.
pub(crate) struct Worker<Q>(mpsc::Sender<QueuedRequest<Q>>);

impl<Q> Clone for Worker<Q> {
    fn clone(&self) -> Self {
        Worker(self.0.clone())
    }
}

/// How the thread ended: with the queue, or because what it needs could not be made again.
pub(crate) type Shutdown = oneshot::Receiver<Result<()>>;

impl<Q: Send + 'static> Worker<Q> {
    /// Starts the thread, which makes for itself what it answers with, and makes it anew when an
    /// answer panics: who knows in what state that left it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn start<S: 'static>(
        make: impl Fn() -> Result<S> + Send + 'static,
        answer: impl Fn(&mut S, Q) -> ApiResponse + Send + 'static,
    ) -> Result<(Self, Shutdown)> {
        let (sender, mut receiver) = mpsc::channel::<QueuedRequest<Q>>(LENGTH);
        let ((ready, is_ready), (end, ended)) = (oneshot::channel(), oneshot::channel());
        let work = move || -> Result<()> {
            let mut state = match make() {
                Ok(state) => state,
                Err(error) => {
                    let _ = ready.send(Err(error)); // whoever started this waits for it
                    return Ok(());
                }
            };
            let _ = ready.send(Ok(()));
            while let Some(asked) = receiver.blocking_recv() {
                // Whoever has gone, or moved a slider on, needs no answer.
                if asked.answer.is_closed() {
                    continue;
                }
                match catch_unwind(AssertUnwindSafe(|| answer(&mut state, asked.question))) {
                    Ok(answer) => drop(asked.answer.send(answer)),
                    Err(_) => {
                        let sentence = "the computation failed; the server's standard error says why, and it goes on";
                        let _ = asked.answer.send(Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, sentence)));
                        state = make().context("the model could not be loaded again after a failure")?;
                    }
                }
            }
            Ok(())
        };
        thread::Builder::new().name("compute".into()).spawn(move || drop(end.send(work())))?;
        is_ready.blocking_recv().map_err(|_| anyhow!("the model could not be loaded: see the line above"))??;
        Ok((Worker(sender), ended))
    }

    /// The answer, in turn. Dropping the future withdraws the question.
    pub(crate) async fn ask(&self, question: Q) -> ApiResponse {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(QueuedRequest { question, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{LENGTH} requests wait already: try again in a second"),
            ),
            mpsc::error::TrySendError::Closed(_) => ending(),
        })?;
        answered.await.unwrap_or_else(|_| Err(ending()))
    }
}

fn ending() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is ending: start it again")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    #[test]
    fn a_panic_is_answered_and_the_state_is_made_anew() {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let make = move || Ok(count.fetch_add(1, Ordering::SeqCst));
        let (queue, _ended) = Worker::start(make, |state, question: u8| {
            assert!(question < 9, "nine is too many");
            Ok(vec![*state as u8, question])
        })
        .unwrap();
        runtime().block_on(async {
            assert_eq!(queue.ask(1).await.unwrap(), [0, 1]);
            assert_eq!(queue.ask(9).await.unwrap_err().status, 500);
            assert_eq!(queue.ask(2).await.unwrap(), [1, 2]);
        });
        assert_eq!(made.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn what_cannot_be_made_again_ends_the_queue() {
        let made = AtomicUsize::new(0);
        let make = move || if made.fetch_add(1, Ordering::SeqCst) == 0 { Ok(()) } else { Err(anyhow!("gone")) };
        let (queue, ended) = Worker::start(make, |(), (): ()| panic!("always")).unwrap();
        runtime().block_on(async {
            assert_eq!(queue.ask(()).await.unwrap_err().status, 500);
            let error = ended.await.unwrap().unwrap_err();
            assert_eq!(format!("{error:#}"), "the model could not be loaded again after a failure: gone");
            assert_eq!(queue.ask(()).await.unwrap_err().status, 503);
        });
        let never = Worker::start(|| Err::<(), _>(anyhow!("no model")), |(), (): ()| Ok(vec![]));
        assert_eq!(never.err().unwrap().to_string(), "no model");
    }

    #[test]
    fn a_full_queue_refuses_and_withdrawn_questions_are_skipped() {
        let (begun, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let (b, g) = (Arc::clone(&begun), Arc::clone(&go_on));
        let answered = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&answered);
        let (queue, _ended) = Worker::start(
            || Ok(()),
            move |(), is_first: bool| {
                if is_first {
                    b.wait();
                    g.wait();
                }
                count.fetch_add(1, Ordering::SeqCst);
                Ok(vec![])
            },
        )
        .unwrap();
        runtime().block_on(async {
            let first = tokio::spawn({
                let queue = queue.clone();
                async move { queue.ask(true).await }
            });
            tokio::task::yield_now().await;
            begun.wait();
            let waiting: Vec<_> = (0..LENGTH)
                .map(|_| {
                    let queue = queue.clone();
                    tokio::spawn(async move { queue.ask(false).await })
                })
                .collect();
            while queue.0.capacity() > 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(queue.ask(false).await.unwrap_err().status, 503);
            waiting[3].abort();
            tokio::task::yield_now().await;
            go_on.wait();
            assert!(first.await.unwrap().is_ok());
            for (i, task) in waiting.into_iter().enumerate() {
                assert_eq!(task.await.is_ok(), i != 3);
            }
        });
        assert_eq!(answered.load(Ordering::SeqCst), LENGTH);
    }
}
