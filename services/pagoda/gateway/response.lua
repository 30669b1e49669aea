-- Gives transcoded answers the status, the length and the error shape that HTTP clients expect.
-- Native gRPC passes untouched.

local TYPES = {
  ["400"] = "invalid_request_error", ["401"] = "authentication_error", ["403"] = "permission_error",
  ["404"] = "not_found_error", ["409"] = "conflict_error", ["429"] = "rate_limit_error",
  ["503"] = "service_unavailable", ["504"] = "timeout_error",
}

local QUOTE, BACKSLASH = 34, 92

-- The JSON string in `text` that opens at `start`, quotes included; nil if there is none.
local function json_string(text, start)
  if text:byte(start) ~= QUOTE then return nil end
  local i = start + 1
  while i <= #text do
    local c = text:byte(i)
    if c == QUOTE then return text:sub(start, i) end
    i = i + (c == BACKSLASH and 2 or 1)
  end
  return nil
end

-- The JSON string after `"name":` in `text`, quotes included. Quotes inside of strings are escaped, so a
-- name that a client smuggled into a message does not match.
local function json_field(text, name)
  local _, last = text:find('"' .. name .. '":', 1, true)
  return last and json_string(text, last + 1)
end

-- google.rpc.Status as JSON (what the transcoder writes for a gRPC error) to OpenAI's error.
local function rewrite_status(handle)
  local body = handle:body(true)
  -- Header objects taken before body() are dead here.
  local headers = handle:headers()
  local text = body:getBytes(0, body:length())
  if not text:find('^{"code":%d+') then return end
  local details = text:match('"details":(%[.*)$') or ""
  local message = json_field(text, "message") or '""'
  local kind = TYPES[headers:get(":status")] or "server_error"
  local param = json_field(details, "param") or "null"
  local reason = json_field(details, "reason") or "null"
  local length = body:setBytes(
    '{"error":{"message":' .. message .. ',"type":"' .. kind .. '","param":' .. param .. ',"code":' .. reason:lower() .. '}}')
  headers:replace("content-length", tostring(length))
  local delay = details:match('"retryDelay":"([%d%.]+)s"')
  if delay and not headers:get("retry-after") then
    headers:add("retry-after", tostring(math.ceil(tonumber(delay))))
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local content_type = headers:get("content-type") or ""
  if content_type:find("^application/grpc") then return end

  local status, length = headers:get("x-http-status"), headers:get("x-content-length")
  headers:remove("x-http-status")
  headers:remove("x-content-length")
  headers:remove("grpc-status")
  headers:remove("grpc-message")
  headers:remove("grpc-status-details-bin")
  if length then headers:replace("content-length", length) end
  if status then
    -- The service chose the status; the body is its own.
    headers:replace(":status", status)
  elseif tonumber(headers:get(":status")) >= 400 and content_type:find("^application/json") then
    -- Errors only: a stream must never be buffered.
    rewrite_status(handle)
  end
end
