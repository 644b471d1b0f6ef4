# A training program in R, without a package, that takes part in a study through the local server:
#
#   hopaas-p2p serve local
#   Rscript train.R PORT KEY_FILE STUDY
#
# It asks for trials until the study has none left. It reads values from the JSON by hand; a real program would
# use jsonlite.

arguments <- commandArgs(trailingOnly = TRUE)
port <- as.integer(arguments[1])
key <- readLines(arguments[2], n = 1, warn = FALSE)
study <- arguments[3]

# POSTs the body to /v1/VERB, and returns the JSON of the reply.
post <- function(verb, ...) {
  body <- paste0("{", paste(sprintf('"study": "%s"', study), ..., sep = ", "), "}")
  connection <- socketConnection("127.0.0.1", port, blocking = TRUE, open = "r+b", timeout = 600)
  on.exit(close(connection))
  head <- c(
    sprintf("POST /v1/%s HTTP/1.0", verb), sprintf("Host: 127.0.0.1:%d", port),
    paste("Authorization: Bearer", key), sprintf("Content-Length: %d", nchar(body, "bytes")), "", body
  )
  writeBin(charToRaw(paste(head, collapse = "\r\n")), connection)
  tail(readLines(connection, warn = FALSE), 1)
}

# The number that follows "name": in the reply.
number <- function(reply, name) {
  found <- regmatches(reply, regexpr(sprintf('(?<="%s": )[-+0-9.eE]+', name), reply, perl = TRUE))
  if (length(found) == 0) stop(reply)
  as.numeric(found)
}

repeat {
  asked <- post("ask")
  if (grepl('"code": 3[,}]', asked)) break # the study has no work
  x <- number(asked, "x")
  trial <- sprintf('"trial": %d', number(asked, "trial"))
  for (epoch in 1:3) {
    loss <- (x - 0.3)^2 + 1 / epoch
    reply <- post("report", trial, sprintf('"value": %.17g, "step": %d', loss, epoch))
    pruned <- grepl('"prune": true', reply)
    if (pruned) break
  }
  post("tell", trial, if (pruned) '"state": "pruned"' else sprintf('"values": [%.17g]', loss))
}
