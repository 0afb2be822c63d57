-- Asks Portcullis whether a request may go on. Needs LuaSocket (Debian: lua-socket).
local socket = require "socket"
local unix = require "socket.unix"

local SOCKET = "/run/portcullis/gateway/apache.sock"
-- Seconds for all of it; longer than the listener's deadline.
local PATIENCE = 1
-- Headers of the connection to us, and those that this script sets.
local OURS = {
    ["connection"] = true, ["content-length"] = true, ["expect"] = true, ["host"] = true, ["keep-alive"] = true,
    ["proxy-connection"] = true, ["te"] = true, ["trailer"] = true, ["transfer-encoding"] = true, ["upgrade"] = true,
    ["x-original-method"] = true, ["x-original-uri"] = true, ["x-original-host"] = true, ["x-original-proto"] = true,
    ["x-real-ip"] = true,
}
-- Headers of an answer that are about the answer.
local ABOUT = {
    ["connection"] = true, ["content-length"] = true, ["date"] = true, ["keep-alive"] = true, ["server"] = true,
    ["transfer-encoding"] = true,
}

local function question(r)
    local lines = { "GET / HTTP/1.1", "host: portcullis", "connection: close" }
    local function add(name, value)
        -- A line that had an end in it would be two.
        if name:find("[^%w!#$%%&'*+.^_`|~-]") or value:find("[\0-\8\10-\31\127]") then
            error("a header that is none: " .. name)
        end
        lines[#lines + 1] = name .. ": " .. value
    end
    for name, value in pairs(r:headers_in_table()) do
        if not OURS[name:lower()] then add(name, value) end
    end
    add("x-original-method", r.method)
    add("x-original-uri", r.unparsed_uri)
    add("x-original-host", r.headers_in["Host"] or "")
    add("x-original-proto", r.is_https and "https" or "http")
    add("x-real-ip", r.useragent_ip)
    return table.concat(lines, "\r\n") .. "\r\n\r\n"
end

-- Status and headers of the answer, or an error.
local function ask(sent)
    local connection = assert(unix.stream())
    local over = socket.gettime() + PATIENCE
    local function patient()
        connection:settimeout(math.max(over - socket.gettime(), 0), "t")
        return connection
    end
    local function answer()
        assert(patient():connect(SOCKET))
        assert(patient():send(sent))
        local status = assert(assert(patient():receive("*l")):match("^HTTP/1%.1 (%d%d%d) "), "no answer in HTTP")
        local headers = {}
        while true do
            local line = assert(patient():receive("*l"))
            if line == "" then return tonumber(status), headers end
            local name, value = line:match("^([^:%s]+):%s*(.-)%s*$")
            headers[#headers + 1] = { assert(name, "a header without a name"):lower(), value }
        end
    end
    local fine, status, headers = pcall(answer)
    connection:close()
    if not fine then error(status, 0) end
    return status, headers
end

-- Of one name all values in one, as Apache has them; of cookies, which cannot be put into one line, the last.
local function put(into, headers)
    local joined = {}
    for _, header in ipairs(headers) do
        local name, value = header[1], header[2]
        if not ABOUT[name] then
            into[name] = nil
            -- An empty value means that nobody is to see that header.
            local before = name ~= "set-cookie" and joined[name]
            if value ~= "" then joined[name] = before and before .. ", " .. value or value end
        end
    end
    for name, value in pairs(joined) do into[name] = value end
end

-- What a client names in Connection mod_proxy takes away before it asks the service, also what the decision has set.
local function unname(headers_in)
    local kept = {}
    for token in (headers_in["Connection"] or ""):lower():gmatch("[^,%s]+") do
        if token == "close" or token == "keep-alive" or token == "upgrade" then kept[#kept + 1] = token end
    end
    headers_in["Connection"] = kept[1] and table.concat(kept, ", ") or nil
end

local function decide(r)
    -- "ProxyPass /" takes all slashes at the front for one: another path would be sent than was decided about.
    if r.unparsed_uri:sub(1, 2) == "//" then return 400 end
    local status, headers = ask(question(r))
    if status == 200 then
        unname(r.headers_in)
        put(r.headers_in, headers)
        return apache2.OK
    end
    put(r.err_headers_out, headers)
    -- The page is Apache's own, and so is its type.
    r.err_headers_out["content-type"] = nil
    return status >= 300 and status or 503
end

-- Only a decision opens; whatever else happens is 503. (DECLINED would open too.)
function check(r)
    local fine, result = pcall(decide, r)
    if fine then return result end
    r:err("portcullis: " .. tostring(result))
    return 503
end
