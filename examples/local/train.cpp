// A training program in C++, without a library, that takes part in a study through the local server:
//
//   hopaas-p2p serve local
//   g++ -O1 -o train train.cpp
//   ./train PORT KEY_FILE STUDY
//
// It asks for trials until the study has none left. It reads values from the JSON by hand; a real program would
// use a JSON library.

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>

static int port;
static std::string key, study;

// POSTs the body to /v1/VERB, and returns the JSON of the reply.
static std::string post(const std::string& verb, const std::string& body) {
    int connection = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in server{};
    server.sin_family = AF_INET;
    server.sin_port = htons(port);
    inet_pton(AF_INET, "127.0.0.1", &server.sin_addr);
    if (connect(connection, reinterpret_cast<sockaddr*>(&server), sizeof server) != 0)
        throw std::runtime_error("nothing listens on this port");
    std::string request = "POST /v1/" + verb + " HTTP/1.0\r\nHost: 127.0.0.1:" + std::to_string(port) +
                          "\r\nAuthorization: Bearer " + key + "\r\nContent-Length: " + std::to_string(body.size()) +
                          "\r\n\r\n" + body;
    for (std::size_t sent = 0; sent < request.size();) {
        ssize_t count = write(connection, request.data() + sent, request.size() - sent);
        if (count <= 0) throw std::runtime_error("the connection broke");
        sent += count;
    }
    std::string reply;
    char part[4096];
    for (ssize_t count; (count = read(connection, part, sizeof part)) > 0;) reply.append(part, count);
    close(connection);
    return reply.substr(reply.find("\r\n\r\n") + 4);
}

// The number that follows "name": in the reply.
static double number(const std::string& reply, const std::string& name) {
    std::size_t at = reply.find("\"" + name + "\": ");
    if (at == std::string::npos) throw std::runtime_error(reply);
    return std::strtod(reply.c_str() + at + name.size() + 4, nullptr);
}

int main(int, char** argument) {
    port = std::atoi(argument[1]);
    std::ifstream(argument[2]) >> key;
    study = argument[3];
    for (;;) {
        std::string asked = post("ask", "{\"study\": \"" + study + "\"}");
        if (asked.find("\"code\": 3") != std::string::npos) return 0;  // the study has no work
        double x = number(asked, "x"), loss = 1;
        std::string place = "\"study\": \"" + study + "\", \"trial\": " + std::to_string(int(number(asked, "trial")));
        bool pruned = false;
        for (int epoch = 1; epoch <= 3 && !pruned; ++epoch) {
            loss = (x - 0.3) * (x - 0.3) + 1.0 / epoch;
            std::string reply = post("report", "{" + place + ", \"value\": " + std::to_string(loss) +
                                                   ", \"step\": " + std::to_string(epoch) + "}");
            pruned = reply.find("\"prune\": true") != std::string::npos;
        }
        post("tell", pruned ? "{" + place + ", \"state\": \"pruned\"}"
                            : "{" + place + ", \"values\": [" + std::to_string(loss) + "]}");
    }
}
