//! A real nginx, unprivileged, in a directory of its own.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::{eventually, ports};

pub struct Nginx {
    pub addr: SocketAddr,
    child: Child,
    dir: TempDir,
}

impl Nginx {
    /// One server with these directives; `None`, said loudly, when nginx is not installed.
    pub async fn start(test: &str, server: &str) -> Option<Self> {
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"];
        let Some(program) = program.into_iter().find(|path| Path::new(path).exists()) else {
            crate::skip(test, "nginx is not installed");
            return None;
        };
        let dir = TempDir::with_prefix("weft-nginx-").unwrap();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()));
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {}/{name};\n", dir.path().display()))
            .concat();
        let path = dir.path().join("nginx.conf");
        let text = format!(
            "daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;\n\
             events {{ worker_connections 512; }}\n\
             http {{\naccess_log off;\n{temporary}server {{ listen {addr}; root {dir}/www; {server} }}\n}}\n",
            dir = dir.path().display()
        );
        std::fs::create_dir(dir.path().join("www")).unwrap();
        std::fs::write(&path, text).unwrap();
        let child = Command::new(program)
            .arg("-p")
            .arg(dir.path())
            .arg("-c")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let nginx = Self { addr, child, dir };
        eventually("nginx listens", crate::SOON, async || tokio::net::TcpStream::connect(addr).await.is_ok()).await;
        Some(nginx)
    }

    /// Puts a file where `root` points.
    pub fn file(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.dir.path().join("www").join(name), bytes).unwrap();
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
