-- KEYS: 4 users or keys. ARGV: 3 user or key, 4 name, 5 expected revision (empty: there
-- must be no entry; *: any), 6 new text (empty: remove), 7 change or same revision.
local known = redis.call('HGET', KEYS[4], ARGV[4])
-- A removed entry keeps its number and has no text, so that a gateway that was away while
-- the store lost its data does not restore it.
local is_there = known and string.sub(known, -1) ~= '\n'
local revision = is_there and string.match(known, '^%S+') or ''
if ARGV[6] == '' and not is_there then return {'none'} end
if ARGV[5] ~= '*' and revision ~= ARGV[5] then return {'conflict', revision} end
local next_seq = redis.call('HGET', meta, 'seq') + 1
local made, changed = string.match(revision, '^(%d+)%.(%d+)$')
if not made then made, changed = whole(next_seq), '0'
elseif ARGV[7] == 'change' then changed = whole(changed + 1) end
local text = made .. '.' .. changed .. ' ' .. whole(next_seq) .. '\n' .. ARGV[6]
local seq = change('k', ARGV[3], 'n', ARGV[4], 't', text)
redis.call('HSET', KEYS[4], ARGV[4], text)
return {'ok', seq, made, changed}
