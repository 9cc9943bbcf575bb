// Express with its compression middleware before a server, as development servers and many a gateway have it.
// usage: node proxy.js TARGET_URL; says the port on stdout.
const compression = require('compression');
const express = require('express');
const httpProxy = require('http-proxy');

const proxy = httpProxy.createProxyServer({ target: process.argv[2] });
proxy.on('error', (error, request, response) => response.destroy());
const server = express()
    .use(compression({ threshold: 0 }))
    .use((request, response) => proxy.web(request, response))
    .listen(0, '127.0.0.1', () => console.log(server.address().port));
