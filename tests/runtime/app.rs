//! The app of the tests, compiled by them into a static binary: one file, no crates, so that it runs as an
//! image FROM scratch and as a plain command. `APP` says how it behaves.
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::{env, fs, process, thread, time::Duration};

unsafe extern "C" {
    fn signal(number: i32, handler: usize) -> usize;
    fn write(file: i32, bytes: *const u8, count: usize) -> isize;
    fn _exit(code: i32) -> !;
    fn syscall(number: i64, ...) -> i64;
}

/// Ends the thread that calls it, and no other.
const EXIT: i64 = if cfg!(target_arch = "x86_64") { 60 } else { 93 };

const TERM: i32 = 15;
const QUIT: i32 = 3;
const IGNORED: usize = 1;

extern "C" fn leave_in_order(number: i32) {
    let told: &[u8] = if number == QUIT { b"got QUIT\n" } else { b"got TERM\n" };
    // Only what POSIX allows in a signal handler.
    unsafe {
        write(1, told.as_ptr(), told.len());
        _exit(0)
    }
}

fn main() {
    for number in [TERM, QUIT] {
        unsafe { signal(number, leave_in_order as *const () as usize) };
    }
    match env::var("APP").as_deref() {
        Ok("exit-3") => {
            println!("leaving");
            eprintln!("for a reason");
            process::exit(3);
        }
        Ok("ignore-term") => {
            unsafe { signal(TERM, IGNORED) };
        }
        Ok("bear-child") => {
            unsafe { signal(TERM, IGNORED) };
            let child = process::Command::new(env::current_exe().unwrap()).env("APP", "be-child").spawn().unwrap();
            println!("child {}", child.id());
            unsafe { signal(TERM, leave_in_order as *const () as usize) };
        }
        Ok("be-child") => loop {
            unsafe { signal(TERM, IGNORED) };
            thread::sleep(Duration::from_secs(60));
        },
        Ok("eat-memory") => {
            let mut eaten = Vec::new();
            loop {
                eaten.push(vec![1_u8; 1 << 20]);
            }
        }
        _ => {}
    }
    let host = env::var("HOST").ok().and_then(|host| host.parse().ok()).unwrap_or(Ipv4Addr::UNSPECIFIED);
    let port = env::var("PORT").unwrap().parse().unwrap();
    let listener = TcpListener::bind((host, port)).unwrap();
    println!("listening");
    let serve = move || {
        for connection in listener.incoming().flatten() {
            thread::spawn(move || answer(connection));
        }
    };
    if env::var("APP").as_deref() == Ok("leave-first-thread") {
        thread::spawn(serve);
        unsafe { syscall(EXIT, 0) };
    } else {
        serve();
    }
}

/// `/env/NAME`, `/args`, `/file/…`, `/keep/…` (writes a file of that path); anything else is greeted.
fn answer(mut connection: TcpStream) {
    let mut head = [0; 4096];
    let Ok(count) = connection.read(&mut head) else { return };
    let head = String::from_utf8_lossy(&head[..count]);
    let path = head.split(' ').nth(1).unwrap_or("/");
    let body = match path.split_at(path[1..].find('/').map_or(path.len(), |at| at + 1)) {
        ("/env", name) => env::var(&name[1..]).unwrap_or_default(),
        ("/args", _) => env::args().skip(1).collect::<Vec<_>>().join(" "),
        ("/file", path) => fs::read_to_string(path).unwrap_or_else(|error| error.to_string()),
        ("/keep", path) => fs::write(path, "kept").map_or_else(|error| error.to_string(), |()| "written".to_owned()),
        _ => "hello".to_owned(),
    };
    let _ = write!(
        connection,
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
}
