//! The compute thread and the queue of its requests, which are processed in the order of arrival.
//! The queue is short, so that no request waits long.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use anyhow::{Context, Result, anyhow};
use hyper::StatusCode;
use tokio::sync::{mpsc, oneshot};

use crate::error::{ApiError, ApiResult};

/// The maximum number of waiting requests: enough for 50 clients with one request each, which a
/// micro model processes in a few seconds.
const QUEUE_LENGTH: usize = 64;

/// A request in the queue, and the channel for its result.
struct QueuedRequest<R> {
    request: R,
    reply: oneshot::Sender<ApiResult>,
}

/// The handle of the compute thread. Dropping the last handle ends the thread.
pub(crate) struct Worker<R>(mpsc::Sender<QueuedRequest<R>>);

impl<R> Clone for Worker<R> {
    fn clone(&self) -> Self {
        Worker(self.0.clone())
    }
}

/// Receives the result of the compute thread when it ends: an error if its state could not be
/// loaded again.
pub(crate) type WorkerExit = oneshot::Receiver<Result<()>>;

impl<R: Send + 'static> Worker<R> {
    /// Starts the compute thread. It loads its state with `load` and processes requests with
    /// `handle`. If `handle` panics, the state can be invalid, so it is loaded again.
    ///
    /// # Errors
    /// `load` fails.
    pub(crate) fn start<S: 'static>(
        load: impl Fn() -> Result<S> + Send + 'static,
        handle: impl Fn(&mut S, R) -> ApiResult + Send + 'static,
    ) -> Result<(Self, WorkerExit)> {
        let (sender, mut receiver) = mpsc::channel::<QueuedRequest<R>>(QUEUE_LENGTH);
        let ((ready, is_ready), (exit, exited)) = (oneshot::channel(), oneshot::channel());
        let work = move || -> Result<()> {
            let mut state = match load() {
                Ok(state) => state,
                Err(error) => {
                    let _ = ready.send(Err(error)); // `start` waits for this
                    return Ok(());
                }
            };
            let _ = ready.send(Ok(()));
            while let Some(QueuedRequest { request, reply }) = receiver.blocking_recv() {
                // The client has disconnected or withdrawn the request.
                if reply.is_closed() {
                    continue;
                }
                match catch_unwind(AssertUnwindSafe(|| handle(&mut state, request))) {
                    Ok(result) => drop(reply.send(result)),
                    Err(_) => {
                        let message = "the computation failed: see the server's log for the reason";
                        let _ = reply.send(Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)));
                        state = load().context("the model could not be loaded again after a failure")?;
                    }
                }
            }
            Ok(())
        };
        thread::Builder::new().name("compute".into()).spawn(move || drop(exit.send(work())))?;
        is_ready.blocking_recv().map_err(|_| anyhow!("the model could not be loaded: see the message above"))??;
        Ok((Worker(sender), exited))
    }

    /// Queues a request and returns its result. Dropping the future withdraws the request.
    ///
    /// # Errors
    /// 503 if the queue is full or the thread has ended, else the error of the request.
    pub(crate) async fn submit(&self, request: R) -> ApiResult {
        let (reply, result) = oneshot::channel();
        self.0.try_send(QueuedRequest { request, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{QUEUE_LENGTH} requests are already waiting: retry in a second"),
            ),
            mpsc::error::TrySendError::Closed(_) => shutting_down(),
        })?;
        result.await.unwrap_or_else(|_| Err(shutting_down()))
    }
}

fn shutting_down() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down: start it again")
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
    fn state_is_reloaded_after_a_panic() {
        let loads = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&loads);
        let load = move || Ok(count.fetch_add(1, Ordering::SeqCst));
        let (worker, _exit) = Worker::start(load, |state, request: u8| {
            assert!(request < 9, "nine is too many");
            Ok(vec![*state as u8, request])
        })
        .unwrap();
        runtime().block_on(async {
            assert_eq!(worker.submit(1).await.unwrap(), [0, 1]);
            assert_eq!(worker.submit(9).await.unwrap_err().status, 500);
            assert_eq!(worker.submit(2).await.unwrap(), [1, 2]);
        });
        assert_eq!(loads.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn failed_reload_ends_the_worker() {
        let loads = AtomicUsize::new(0);
        let load = move || if loads.fetch_add(1, Ordering::SeqCst) == 0 { Ok(()) } else { Err(anyhow!("gone")) };
        let (worker, exit) = Worker::start(load, |(), (): ()| panic!("always")).unwrap();
        runtime().block_on(async {
            assert_eq!(worker.submit(()).await.unwrap_err().status, 500);
            let error = exit.await.unwrap().unwrap_err();
            assert_eq!(format!("{error:#}"), "the model could not be loaded again after a failure: gone");
            assert_eq!(worker.submit(()).await.unwrap_err().status, 503);
        });
        let failed = Worker::start(|| Err::<(), _>(anyhow!("no model")), |(), (): ()| Ok(vec![]));
        assert_eq!(failed.err().unwrap().to_string(), "no model");
    }

    #[test]
    fn full_queue_is_an_error_and_withdrawn_requests_are_skipped() {
        let (started, resume) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let (in_handler, in_handler_resume) = (Arc::clone(&started), Arc::clone(&resume));
        let handled = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&handled);
        let (worker, _exit) = Worker::start(
            || Ok(()),
            move |(), is_first: bool| {
                if is_first {
                    in_handler.wait();
                    in_handler_resume.wait();
                }
                count.fetch_add(1, Ordering::SeqCst);
                Ok(vec![])
            },
        )
        .unwrap();
        runtime().block_on(async {
            let first = tokio::spawn({
                let worker = worker.clone();
                async move { worker.submit(true).await }
            });
            tokio::task::yield_now().await;
            started.wait();
            let waiting: Vec<_> = (0..QUEUE_LENGTH)
                .map(|_| {
                    let worker = worker.clone();
                    tokio::spawn(async move { worker.submit(false).await })
                })
                .collect();
            while worker.0.capacity() > 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(worker.submit(false).await.unwrap_err().status, 503);
            waiting[3].abort();
            tokio::task::yield_now().await;
            resume.wait();
            assert!(first.await.unwrap().is_ok());
            for (i, task) in waiting.into_iter().enumerate() {
                assert_eq!(task.await.is_ok(), i != 3);
            }
        });
        assert_eq!(handled.load(Ordering::SeqCst), QUEUE_LENGTH);
    }
}
