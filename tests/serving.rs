//! `backpack serve`: every endpoint of the API, rejected requests, concurrent clients and shutdown.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use model::{LanguageModel, ModelConfig, Sampling, SenseChoice, SenseEdit, SenseOp};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::signals::signal;
use crate::support::{Scratch, backpack, command, fixture};

/// A running server. It is killed when the value is dropped.
struct ExplorerProcess {
    process: Child,
    address: String,
}

impl Drop for ExplorerProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A response of the server.
struct HttpResponse {
    status: u16,
    headers: String,
    body: String,
}

impl HttpResponse {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{}", self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let line = self.headers.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}:")))?;
        Some(line.split_once(':')?.1.trim())
    }

    /// The error message of a rejected request.
    #[track_caller]
    fn error_message(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

impl ExplorerProcess {
    fn start(arguments: &[&str]) -> Self {
        let all = [&["serve", "--port", "0", "--threads", "1"], arguments].concat();
        let mut process = command(&all).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().trim_end_matches('/').split_once("http://").map(|(_, address)| address.to_owned());
        ExplorerProcess { process, address: address.unwrap_or_else(|| panic!("no address in \"{line}\"")) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends the bytes, and reads until the server closes the connection.
    fn send(&self, request: &str) -> HttpResponse {
        let mut stream = self.connect();
        // The server may close the connection of a rejected request before it has read all.
        let _ = stream.write_all(request.as_bytes());
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let (headers, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {text}"));
        let status = headers.split(' ').nth(1).unwrap().parse().unwrap();
        HttpResponse { status, headers: headers.to_owned(), body: body.to_owned() }
    }

    fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> HttpResponse {
        let host = if headers.contains("Host:") { String::new() } else { format!("Host: {}\r\n", self.address) };
        let length = body.len();
        self.send(&format!(
            "{method} {path} HTTP/1.1\r\n{host}{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    }

    fn get(&self, path: &str) -> HttpResponse {
        self.request("GET", path, "", "")
    }

    fn post(&self, path: &str, body: &str) -> HttpResponse {
        self.request("POST", &format!("/api/v1/{path}"), "Content-Type: application/json\r\n", body)
    }

    /// Sends a request that must succeed, and returns the response.
    #[track_caller]
    fn query(&self, path: &str, question: Value) -> Value {
        let answer = self.post(path, &question.to_string());
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        answer.json()
    }
}

/// A tiny model with the published vocabulary.
fn small_model() -> (TempDir, LanguageModel) {
    let folder = tempfile::tempdir().unwrap();
    let config = ModelConfig {
        n_embd: 16,
        n_head: 2,
        n_layer: 1,
        num_senses: 4,
        n_positions: 32,
        end_of_text: Some(model::GPT2_END_OF_TEXT),
        ..ModelConfig::default()
    };
    let model = LanguageModel::initialize(config, 7, tch::Device::Cpu).unwrap();
    // With the initial weights all words would be almost equally probable.
    tch::no_grad(|| model.parameters().iter().for_each(|(_, tensor)| drop(tensor.shallow_clone().g_mul_scalar_(4.0))));
    model::save_model(&model, folder.path()).unwrap();
    (folder, model)
}

fn serve_small() -> (TempDir, LanguageModel, ExplorerProcess) {
    let (folder, model) = small_model();
    let server = ExplorerProcess::start(&["--model", folder.path().to_str().unwrap()]);
    (folder, model, server)
}

const TEXT: &str = "She was in possession of a good house";

fn close(left: &Value, right: f64) -> bool {
    (left.as_f64().unwrap() - right).abs() < 1e-4 * (1.0 + right.abs())
}

fn tokens(words: &Value) -> Vec<i64> {
    words.as_array().unwrap().iter().map(|word| word["token"].as_i64().unwrap()).collect()
}

#[test]
fn every_endpoint_returns_the_values_of_the_model() {
    let (_folder, mut model, server) = serve_small();
    let described = server.get("/api/v1/model").json();
    assert_eq!((&described["num_senses"], &described["n_positions"]), (&json!(4), &json!(32)));
    assert_eq!(described["edited"], json!([]));

    let senses = server.query("senses", json!({ "word": "house", "top": 5 }));
    let token = senses["token"].as_i64().unwrap();
    assert_eq!(senses["word"], " house");
    assert_eq!(senses["senses"].as_array().unwrap().len(), 4);
    for (got, want) in senses["senses"].as_array().unwrap().iter().zip(evals::sense_views(&model, token, 5).unwrap()) {
        assert!(close(&got["norm"], want.norm));
        assert_eq!(tokens(&got["raises"]), want.raises.iter().map(|w| w.id).collect::<Vec<_>>());
        assert_eq!(tokens(&got["lowers"]), want.lowers.iter().map(|w| w.id).collect::<Vec<_>>());
    }

    let read = server.query("reading", json!({ "text": TEXT, "position": 4, "top": 3 }));
    let ids = tokens(&read["tokens"]);
    let reading = evals::TextAnalysis::new(&model, &ids).unwrap();
    assert_eq!((read["next"].as_array().unwrap().len(), read["weights"].as_array().unwrap().len()), (3, 4));
    for (got, want) in read["next"].as_array().unwrap().iter().zip(reading.next_tokens(4, 3).unwrap()) {
        assert_eq!(got["token"], want.id);
        assert!(close(&got["logit"], want.logit) && close(&got["probability"], want.probability));
    }
    for (sense, row) in read["weights"].as_array().unwrap().iter().enumerate() {
        assert_eq!(row.as_array().unwrap().len(), 5);
        assert!(close(&row[2], reading.weights.double_value(&[sense as i64, 4, 2])));
    }

    let weights = server.query("weights", json!({ "ids": ids, "senses": [2, 0] }));
    for (place, sense) in [2i64, 0].into_iter().enumerate() {
        let one = &weights["senses"][place];
        assert_eq!((&one["sense"], one["weights"].as_array().unwrap().len()), (&json!(sense), ids.len()));
        for (position, row) in one["weights"].as_array().unwrap().iter().enumerate() {
            let row: Vec<f64> = row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            assert!(row.len() == position + 1 && (row.iter().sum::<f64>() - 1.0).abs() < 1e-3, "{row:?}");
        }
    }
    assert_eq!(server.query("weights", json!({ "text": TEXT }))["senses"].as_array().unwrap().len(), 4);

    for word in [json!({ "word": "government" }), json!({ "token": 11 })] {
        let mut question = json!({ "text": TEXT });
        question.as_object_mut().unwrap().extend(word.as_object().unwrap().clone());
        let made = server.query("contributions", question);
        let parts = made["contributions"].as_array().unwrap();
        let sum: f64 = parts.iter().flat_map(|row| row.as_array().unwrap()).map(|x| x.as_f64().unwrap()).sum();
        assert_eq!((parts.len(), parts[0].as_array().unwrap().len()), (4, ids.len()));
        assert!((sum - made["next"]["logit"].as_f64().unwrap()).abs() < 1e-4, "{sum} {}", made["next"]);
        let want = reading.candidate(ids.len() - 1, made["next"]["token"].as_i64().unwrap()).unwrap();
        assert!(close(&made["next"]["logit"], want.logit));
    }

    let edits = json!([{ "word": "house", "sense": "all", "op": "zero" }]);
    let next = server.query("next", json!({ "text": TEXT, "top": 4, "edits": edits }));
    let edit = SenseEdit { token, sense: SenseChoice::All, op: SenseOp::Scale(0.0) };
    let last = ids.len() - 1;
    let after = model
        .with_edits(std::slice::from_ref(&edit), |model| evals::TextAnalysis::new(model, &ids)?.next_tokens(last, 4))
        .unwrap();
    let before = evals::TextAnalysis::new(&model, &ids).unwrap().next_tokens(last, 4).unwrap();
    assert!(next["divergence"].as_f64().unwrap() > 1e-6, "{next}");
    for (side, want) in [("before", before), ("after", after)] {
        for want in want {
            let words = next["words"].as_array().unwrap();
            let got = words.iter().find(|word| word["token"] == want.id).unwrap();
            assert!(close(&got[side]["logit"], want.logit) && close(&got[side]["probability"], want.probability));
        }
    }
    // The edits applied only to that request.
    assert_eq!(server.query("reading", json!({ "text": TEXT, "position": 4, "top": 3 })), read);
    assert_eq!(server.query("next", json!({ "text": TEXT }))["divergence"], 0.0);

    let question = json!({ "text": TEXT, "max_new_tokens": 20, "temperature": 0.7, "top_k": 50, "seed": 3 });
    let sampling = Sampling::Random { temperature: 0.7, top_k: Some(50), top_p: None, seed: 3 };
    let plain = model::generate(&model, &ids, 20, sampling).unwrap();
    assert_eq!(tokens(&server.query("generate", question.clone())["new"]), plain);
    let mut edited = question;
    edited["edits"] = edits;
    let want = model.with_edits(&[edit], |model| model::generate(model, &ids, 20, sampling)).unwrap();
    assert_eq!(tokens(&server.query("generate", edited)["new"]), want);
    assert_ne!(plain, want);
}

#[test]
fn invalid_requests_get_an_error_message() {
    let (_folder, _model, server) = serve_small();
    let split = server.post("senses", r#"{"word": "antidisestablishmentarianism"}"#);
    assert!(split.error_message(422).contains("is not one token: it splits into \" ant\""));
    assert_eq!(split.json()["pieces"][0]["word"], " ant");
    let long = "word ".repeat(40);
    for (path, question, status, phrase) in [
        ("senses", "{".to_owned(), 400, "invalid request"),
        ("senses", json!({ "word": "house", "tip": 3 }).to_string(), 400, "unknown field `tip`"),
        ("senses", json!({ "word": "house", "token": 3 }).to_string(), 400, "either a \"word\" or a \"token\""),
        ("senses", json!({ "token": 50264 }).to_string(), 400, "outside the model's vocabulary"),
        ("senses", json!({ "word": "house", "top": 0 }).to_string(), 400, "between 1 and 100"),
        ("reading", json!({}).to_string(), 400, "either a \"text\" or \"ids\""),
        ("reading", json!({ "text": "" }).to_string(), 400, "the text is empty"),
        ("reading", json!({ "text": long }).to_string(), 413, "more than the model's context of 32"),
        ("reading", json!({ "text": TEXT, "position": 8 }).to_string(), 400, "there is no position 8"),
        ("weights", json!({ "text": TEXT, "senses": [4] }).to_string(), 400, "there is no sense 4"),
        ("weights", json!({ "text": TEXT, "senses": vec![0; 6000] }).to_string(), 413, "ask for fewer senses"),
        ("generate", json!({ "text": TEXT, "max_new_tokens": 30 }).to_string(), 413, "context of 32 has room for"),
        ("contributions", json!({ "text": TEXT }).to_string(), 400, "either a \"word\" or a \"token\""),
        (
            "next",
            json!({ "text": TEXT, "edits": [{ "word": "house", "sense": 9, "factor": 1 }] }).to_string(),
            400,
            "senses 0 to 3",
        ),
        (
            "next",
            json!({ "text": TEXT, "edits": [{ "word": "house", "sense": 1 }] }).to_string(),
            400,
            "\"scale\" needs a \"factor\"",
        ),
        (
            "next",
            json!({ "text": TEXT, "edits": vec![json!({ "token": 1, "sense": 0, "factor": 1 }); 65] }).to_string(),
            413,
            "more than the limit of 64 per request",
        ),
        ("generate", json!({ "text": TEXT, "max_new_tokens": 65 }).to_string(), 400, "between 1 and 64"),
        ("generate", json!({ "text": TEXT, "temperature": 0 }).to_string(), 400, "the temperature is 0"),
        ("generate", json!({ "text": TEXT, "greedy": true, "top_k": 5 }).to_string(), 400, "no effect"),
        ("nothing", "{}".to_owned(), 404, "unknown path /api/v1/nothing"),
        ("senses", format!("{{\"word\": \"{}\"}}", "a".repeat(1_100_000)), 413, "larger than 1024 KiB"),
    ] {
        let message = server.post(path, &question).error_message(status);
        assert!(message.contains(phrase), "{path} {question}: {message}");
    }
    server.query("senses", json!({ "word": "house" }));
}

#[test]
fn other_origins_hosts_and_methods_are_rejected() {
    let (_folder, _model, server) = serve_small();
    let question = r#"{"word": "house"}"#;
    let json = "Content-Type: application/json\r\n";
    let with = |headers: &str| server.request("POST", "/api/v1/senses", &format!("{json}{headers}"), question);
    assert_eq!(with(&format!("Origin: http://{}\r\n", server.address)).status, 200);
    for origin in ["http://evil.example", "null", "http://127.0.0.1:1"] {
        assert!(with(&format!("Origin: {origin}\r\n")).error_message(403).contains("are refused"));
    }
    assert_eq!(with("Sec-Fetch-Site: cross-site\r\n").status, 403);
    // Another host name that resolves to this server (DNS rebinding), also for the page.
    for (method, path) in [("POST", "/api/v1/senses"), ("GET", "/"), ("GET", "/main.js")] {
        let answer = server.request(method, path, &format!("{json}Host: evil.example\r\n"), question);
        assert!(answer.error_message(403).contains("\"evil.example\" is not this server's"));
    }
    assert_eq!(with("Host: localhost:1234\r\n").status, 200);
    let untyped = server.request("POST", "/api/v1/senses", "Content-Type: text/plain\r\n", question);
    assert!(untyped.error_message(415).contains("must be application/json"));
    let get = server.get("/api/v1/senses");
    assert!(get.error_message(405).contains("GET is not allowed for") && get.header("allow") == Some("POST"));
    let post = server.request("POST", "/api/v1/model", "", "{}");
    assert!(post.error_message(405).contains("POST is not allowed for") && post.header("allow") == Some("GET, HEAD"));
    let preflight = "Origin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\n";
    let preflight = server.request("OPTIONS", "/api/v1/senses", preflight, "");
    assert!(preflight.status == 403 && !preflight.headers.to_lowercase().contains("access-control"));
    assert_eq!(server.send("GET /api/v1/model HTTP/1.0\r\n\r\n").status, 400);
}

/// Loads the page and every file that it refers to.
#[test]
fn the_page_loads_only_files_of_this_server() {
    let (_folder, _model, server) = serve_small();
    let mut wanted = vec!["/".to_owned()];
    let mut at = 0;
    while at < wanted.len() {
        let path = wanted[at].clone();
        let answer = server.get(&path);
        assert_eq!(answer.status, 200, "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'self';") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let kind = answer.header("content-type").unwrap();
        let ending = path.rsplit('.').next().unwrap();
        let want = [("js", "text/javascript"), ("css", "text/css"), ("svg", "image/svg+xml")];
        let want = want.iter().find(|(end, _)| *end == ending).map_or("text/html", |(_, kind)| kind);
        assert!(kind.starts_with(want), "{path} is {kind}");
        for quoted in answer.body.split('"') {
            let is_file = [".js", ".css", ".svg"].iter().any(|end| quoted.ends_with(end));
            let name = quoted.trim_start_matches(['.', '/']);
            if is_file && !name.contains(['/', ' ', '$']) && !wanted.contains(&format!("/{name}")) {
                wanted.push(format!("/{name}"));
            }
        }
        at += 1;
    }
    assert!(wanted.len() > 8, "{wanted:?}");
    for path in ["/../Cargo.toml", "/assets/", "/%2e%2e/Cargo.toml", "/api/v1/", "/index.html"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    assert_eq!(server.request("POST", "/", "", "").status, 405);
}

#[test]
fn fifty_concurrent_clients_get_correct_responses() {
    let (_folder, _model, server) = serve_small();
    let questions: Vec<(&str, Value)> = (0..50)
        .map(|client| {
            let text = format!("She was {} in the house", ["not", "glad", "there", "a", "the"][client % 5]);
            let edits = json!([{ "word": "house", "sense": client % 4, "factor": client }]);
            match client % 5 {
                0 => ("senses", json!({ "token": 300 + client, "edits": edits })),
                1 => ("reading", json!({ "text": text, "edits": edits })),
                2 => ("contributions", json!({ "text": text, "token": client, "edits": edits })),
                3 => ("next", json!({ "text": text, "edits": edits })),
                _ => ("generate", json!({ "text": text, "seed": client, "max_new_tokens": 8, "edits": edits })),
            }
        })
        .collect();
    let alone: Vec<Value> = questions.iter().map(|(path, question)| server.query(path, question.clone())).collect();
    thread::scope(|scope| {
        for ((path, question), want) in questions.iter().zip(&alone) {
            let server = &server;
            scope.spawn(move || (0..4).for_each(|_| assert_eq!(server.query(path, question.clone()), *want)));
        }
    });
}

#[test]
fn a_signal_stops_the_server_despite_idle_clients() {
    for name in ["TERM", "INT"] {
        let (_folder, _model, mut server) = serve_small();
        let mut idle = server.connect();
        idle.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut some = [0; 12];
        idle.read_exact(&mut some).unwrap();
        let mut slow = server.connect();
        let head =
            format!("POST /api/v1/senses HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n", server.address);
        slow.write_all(format!("{head}Content-Length: 17\r\n\r\n{{\"word\": ").as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        signal(&server.process, name);
        thread::sleep(Duration::from_millis(200));
        // A request that began before the signal is answered.
        slow.write_all(b"\"house\"}").unwrap();
        let mut answer = String::new();
        slow.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(server.process.wait().unwrap().code(), Some(0), "SIG{name}");
        assert!(start.elapsed() < Duration::from_secs(4));
        assert!(TcpStream::connect(&server.address).is_err());
    }
}

#[test]
fn serve_reports_bad_arguments_at_the_start() {
    let scratch = Scratch::new();
    let fixture = fixture("inv_scale");
    let other = backpack(&["serve", "--model", fixture.to_str().unwrap(), "--port", "0"]).error();
    assert!(other.contains("the tokenizer has 50257 ids, more than the model's vocabulary of 311"), "{other}");
    scratch.train("run", &["--set", "model.architecture=gpt2", "--stop-after", "1"]).expect(85);
    let gpt2 = scratch.checkpoint("run", 1);
    let command = ["serve", "--port", "0", "--tokenizer", "data/gpt2/tokenizer.json", "--model"];
    let gpt2 = backpack(&[&command[..], &[gpt2.to_str().unwrap()]].concat()).error();
    assert!(gpt2.contains("is a GPT-2, which has no senses to explore"), "{gpt2}");
    let (folder, _model, server) = serve_small();
    let port = server.address.rsplit(':').next().unwrap();
    let taken = backpack(&["serve", "--model", folder.path().to_str().unwrap(), "--port", port]).error();
    assert!(taken.contains(&format!("cannot listen on 127.0.0.1:{port}: choose another --port")), "{taken}");
}

/// Serves edits and a sense table, and warns on stderr about a public address.
#[test]
fn edits_sense_tables_and_other_addresses_are_served() {
    let (folder, model) = small_model();
    let scratch = Scratch::new();
    let (edit, export) = (scratch.path("edits.json"), scratch.path_str("export"));
    fs::write(&edit, json!({ "edits": [{ "word": "house", "sense": 0, "op": "zero" }] }).to_string()).unwrap();
    let folder = folder.path().to_str().unwrap();
    let edit = edit.to_str().unwrap();
    backpack(&["export", "--checkpoint", folder, "--output", &export, "--senses"]).expect(0);
    let mut server = ExplorerProcess::start(&["--model", &export, "--edit", edit, "--host", "0.0.0.0"]);
    let mut address = server.address.clone();
    assert!(address.starts_with("0.0.0.0:"));
    address.replace_range(.."0.0.0.0".len(), "127.0.0.1");
    server.address = address;
    assert_eq!(server.get("/api/v1/model").json()["edited"][0]["word"], " house");
    let senses = server.query("senses", json!({ "word": "house" }));
    let token = senses["token"].as_i64().unwrap();
    let want = evals::sense_views(&model, token, 1).unwrap();
    assert_eq!(senses["senses"][0]["norm"], 0.0);
    assert!(close(&senses["senses"][1]["norm"], want[1].norm));
    signal(&server.process, "TERM");
    server.process.wait().unwrap();
    let mut printed = String::new();
    server.process.stderr.take().unwrap().read_to_string(&mut printed).unwrap();
    assert!(printed.contains("warning: 0.0.0.0 is not a loopback address"), "{printed}");
}
